"""A fine-tuning step of everclip against a bare open_clip + AdamW loop: same model, same batches, alternating.

Run: python benchmarks/step.py        prints a table
     python benchmarks/step.py --peak engine|bare    prints the peak memory of one of them in MB
"""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import torch
from common import alternate, ratio, table
from open_clip.loss import ClipLoss

from everclip.config import BackboneConfig, MethodConfig, resolve_config
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.scenarios.load import load_scenario
from everclip.training.engine import Engine

BATCH, STEPS, ROUNDS = 64, 8, 12


class Premade:
    """Hands out batches made beforehand, so that both loops see the same and none pays for making them."""

    def __init__(self, batches: list[dict[str, dict[str, Any]]]) -> None:
        self._batches = batches

    def batches(self, streams: Any, scope: str, start: int, stop: int, workers: int) -> Any:
        """Return the batches of steps `start` to `stop`."""
        return iter(self._batches[start:stop])


def setting(weights: str | None = "random") -> tuple[Any, Any, list[dict[str, dict[str, Any]]], Any]:
    """Return (learner, task, premade batches, training configuration) on the emoji of 2016."""
    config = resolve_config(
        "emoji-time", [f"training.batch_size={BATCH}", f"training.steps={STEPS}", "training.workers=0"]
    )
    scenario = load_scenario(config.scenario)
    backbone = load_backbone(BackboneConfig(name="builtin:tiny", weights=weights), 0)
    method = build_method(MethodConfig(name="finetune", settings=config.method.settings), backbone, 0)
    learner = Learner(method, config.training, 0)
    task = scenario.tasks[0]
    method.begin_task(task, learner.past())
    stream = learner.plan(task)[0].streams["main"]
    batches = [{"main": learner._maker.batch(stream, "bench", step)} for step in range(STEPS)]
    return learner, task, batches, config.training


def bare_loop(batches: list[dict[str, dict[str, Any]]], training: Any) -> Any:
    """Return a function that takes STEPS steps as open_clip's own trainer does."""
    clip = load_backbone(BackboneConfig(name="builtin:tiny", weights="random"), 0).clip
    clip.train()
    decayed = [p for p in clip.parameters() if p.dim() >= 2]
    plain = [p for p in clip.parameters() if p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=training.lr, betas=training.betas, eps=training.eps)
    loss = ClipLoss()

    def steps() -> None:
        for batch in batches:
            columns = batch["main"]
            image = clip.encode_image(columns["image"], normalize=True)
            text = clip.encode_text(columns["tokens"], normalize=True)
            total = loss(image, text, clip.logit_scale.exp())
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(clip.parameters(), training.clip_norm)
            optimiser.step()

    return steps


def engine_loop() -> tuple[Any, list[dict[str, dict[str, Any]]], Any]:
    """Return a function that takes STEPS steps with everclip's engine, its batches and configuration."""
    learner, task, batches, training = setting()
    engine = Engine(learner.accelerator, Premade(batches), learner.features, training, 0)  # type: ignore[arg-type]
    phase = learner.plan(task)[0]

    def steps() -> None:
        engine.run(learner.method, phase, 0)

    return steps, batches, training


def peak(which: str) -> float:
    """Return the peak memory of one loop in MB, in this process."""
    steps, batches, training = engine_loop()
    run = steps if which == "engine" else bare_loop(batches, training)
    for _ in range(3):
        run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> str:
    """Measure and return the table."""
    steps, batches, training = engine_loop()
    baseline, ours = alternate(bare_loop(batches, training), steps, ROUNDS)
    middle, low, high = ratio(baseline, ours)
    rate = BATCH * STEPS / sorted(ours)[len(ours) // 2]
    memory = {
        which: float(
            subprocess.run(
                [sys.executable, __file__, "--peak", which], capture_output=True, text=True, check=True
            ).stdout
        )
        for which in ("bare", "engine")
    }
    rows = [
        ("training step, speed against the bare loop", f"{middle:.3f} ({low:.3f}-{high:.3f})", ">= 0.98"),
        ("peak memory against the bare loop", f"{memory['engine'] / memory['bare']:.3f}", "<= 1.1"),
        ("pairs per second, builtin:tiny, batch 64", f"{rate:.0f}", ">= 100 on 2 cores"),
    ]
    return table("Fine-tuning step (benchmarks/step.py)", rows, ("what", "median (quartiles)", "aim"))


if __name__ == "__main__":
    print(peak(sys.argv[2]) if "--peak" in sys.argv else main())
