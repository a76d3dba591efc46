"""A fine-tuning step of large models: images per second and share of a device's peak, against a bare open_clip loop.

Both loops have the same model (random weights), batches, number format and compile settings; batches are made before
and lie on the device. MACs are counted by running a step of ours; a step's share of the peak is 2 * MACs / seconds /
PEAK. Rounds alternate.

Run: python benchmarks/gpu_step.py --peak 989            on a GPU; PEAK in TFLOP/s of the number format
     python benchmarks/gpu_step.py --device cpu --models builtin:tiny --batch 16 --precision fp32
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from common import alternate, ratio, table
from open_clip.loss import ClipLoss
from PIL import Image
from step import Premade

from everclip.config import BackboneConfig, MethodConfig, TrainingConfig
from everclip.contracts import Task
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.models.blocks import blocks_of
from everclip.training.engine import Engine
from everclip.training.precision import Precision
from everclip.training.trial import count_macs

STEPS, ROUNDS = 32, 8
DISTINCT = 4
"""Batches that lie on the device; the steps take them in turn."""
Batches = list[dict[str, dict[str, Any]]]


def pairs(count: int) -> Table:
    """Return generated images of 32 x 32, each with a caption of its own."""
    draw, images = np.random.default_rng(0), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        images.append(file.getvalue())
    captions = [f"a photograph of thing number {i}" for i in range(count)]
    columns = {
        "id": list(map(str, range(count))),
        "image": pa.array(images, pa.binary()),
        "caption": captions,
    }
    return Table(pa.table(columns), name="generated")


def ours(name: str, given: argparse.Namespace) -> tuple[Callable[[], None], Batches, TrainingConfig, float]:
    """Return (STEPS steps of everclip's engine, its batches, its settings, MACs of a step)."""
    backbone = load_backbone(BackboneConfig(name=name, weights="random"), 0)
    training = TrainingConfig(
        steps=STEPS,
        batch_size=given.batch,
        lr=1e-5,
        warmup=0,
        weight_decay=0.1,
        augment=None,
        workers=0,
        device=given.device,
        precision=given.precision,
        compile=given.compile,
        memory_check="none",
    )
    learner = Learner(build_method(MethodConfig(name="finetune"), backbone, 0), training, 0)
    task = Task(0, "generated", pairs(given.batch))
    learner.method.begin_task(task, learner.past())
    phase = learner.plan(task)[0]
    made = [{"main": learner.engine.maker.batch(phase.streams["main"], "bench", n)} for n in range(DISTINCT)]
    held = [learner.engine.to_device(batch) for batch in made]
    batches = [held[n % DISTINCT] for n in range(STEPS)]
    macs = count_macs(learner.engine, learner.method, [phase])[phase.name]
    engine = Engine(learner.accelerator, Premade(batches), learner.features, training, 0)  # type: ignore[arg-type]
    return lambda: engine.run(learner.method, phase, 0), batches, training, macs


def bare(name: str, batches: Batches, training: TrainingConfig) -> Callable[[], None]:
    """Return STEPS steps as open_clip's own trainer takes them."""
    device = torch.device(training.device)
    clip = load_backbone(BackboneConfig(name=name, weights="random"), 0).clip.to(device)
    clip.train()
    groups = [
        {"params": [p for p in clip.parameters() if p.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in clip.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=training.lr, betas=training.betas, eps=training.eps)
    loss, precision = ClipLoss(), Precision(training.precision, device)
    for block in blocks_of(clip) if training.compile else ():
        block.compile()

    def steps() -> None:
        for batch in batches:
            columns = batch["main"]
            with precision.autocast():
                image = clip.encode_image(columns["image"], normalize=True)
                text = clip.encode_text(columns["tokens"], normalize=True)
            total = loss(image.float(), text.float(), clip.logit_scale.exp())
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            if training.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(clip.parameters(), training.clip_norm)
            optimiser.step()

    return steps


def waiting(steps: Callable[[], None], device: str) -> Callable[[], None]:
    """Return the same, which ends when the device has done all of it."""

    def act() -> None:
        steps()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    return act


def measured(name: str, given: argparse.Namespace) -> tuple[str, ...]:
    """Return the row of a model."""
    steps, batches, training, macs = ours(name, given)
    baseline, found = alternate(
        waiting(bare(name, batches, training), given.device), waiting(steps, given.device), ROUNDS, warmup=2
    )
    middle, low, high = ratio(baseline, found)
    rates = [given.batch * STEPS / statistics.median(times) for times in (found, baseline)]
    share = 2 * macs * rates[0] / given.batch / (1e12 * given.peak) if given.peak else None
    return (
        name,
        f"{rates[0]:,.0f}",
        f"{rates[1]:,.0f}",
        f"{middle:.3f} ({low:.3f}-{high:.3f})",
        "" if share is None else f"{100 * share:.0f} %",
    )


def main() -> str:
    """Measure every model and return the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--models", nargs="*", default=["ViT-B-32", "ViT-B-16"])
    words.add_argument("--batch", type=int, default=256)
    words.add_argument("--device", default="cuda")
    words.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp16"])
    words.add_argument("--compile", action="store_true", help="compile the blocks of both")
    words.add_argument("--peak", type=float, help="TFLOP/s of the device in this number format")
    given = words.parse_args()
    rows = [measured(name, given) for name in given.models]
    how = f"{given.precision}{', compiled' if given.compile else ''}, batch {given.batch}"
    if torch.device(given.device).type == "cuda":
        how += f", {torch.cuda.get_device_name(torch.device(given.device))}"
    head = ("model", "images/s", "bare loop", "speed against it (aim: >= 1)", "share of peak")
    return table(f"Fine-tuning step of large models (benchmarks/gpu_step.py): {how}", rows, head)


if __name__ == "__main__":
    print(main())
