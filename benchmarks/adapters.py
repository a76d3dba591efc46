"""A training step of what trains little against full fine-tuning: same model, same batch, alternating; peak memory.

ViT-B-32 with random weights, 224 px, context 77; the towers' own shapes, a small batch.

Run: python benchmarks/adapters.py                prints a table
     python benchmarks/adapters.py --peak NAME    prints the peak memory of one variant in MB
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import table

from everclip.config import BackboneConfig, MethodConfig, TrainingConfig
from everclip.contracts import Phase, Progress
from everclip.methods.build import build_method
from everclip.methods.trainable import decay_groups
from everclip.models.backbone import load_backbone
from everclip.training.modes import set_modes
from everclip.training.optim import build_optimiser

BATCH, ROUNDS = 8, 4
VARIANTS: dict[str, list[Any]] = {
    "full": ["image", "text", "logit-scale"],
    "lora": [{"lora": {"rank": 8, "targets": ["q", "v"]}}],
    "adapters": [{"adapter": {"width": 64}}],
    "parallel adapters": [{"adapter": {"width": 64, "form": "parallel"}}],
    "layernorms": ["image-layernorm", "text-layernorm"],
    "last 2 blocks": ["image-blocks:last2", "text-blocks:last2"],
    "one tower": ["text"],
}


def stepper(name: str) -> tuple[Callable[[], None], int]:
    """Return a function that takes one training step, and how many parameters train."""
    backbone = load_backbone(BackboneConfig(name="ViT-B-32", weights="random"), 0)
    method = build_method(MethodConfig(settings={"trainable": VARIANTS[name]}), backbone)
    method.mark_trainable()
    set_modes(method, training=True)
    names = [n for n, p in method.named_parameters() if p.requires_grad]
    config = TrainingConfig(steps=1, lr=1e-5)
    optimiser = build_optimiser(method, Phase("bench", {}, decay_groups(names, method)), config)
    draw = torch.Generator().manual_seed(0)
    keys = torch.arange(BATCH)
    columns = {
        "image": torch.randn(BATCH, 3, 224, 224, generator=draw),
        "tokens": backbone.tokenise([f"a photo of thing number {i}" for i in range(BATCH)]),
        "image_key": keys,
        "text_key": keys,
    }

    def step() -> None:
        losses = method({"main": columns}, Progress(0, "bench", 0, 0, 1, 0))
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_([method.get_parameter(n) for n in names], 1.0)
        optimiser.step()

    return step, sum(method.get_parameter(n).numel() for n in names)


def seconds(step: Callable[[], None]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def peak(name: str) -> float:
    """Return the peak memory of a variant in MB, in this process."""
    step, _ = stepper(name)
    for _ in range(2):
        step()
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> str:
    """Measure and return the table."""
    steppers = {name: stepper(name) for name in VARIANTS}
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(ROUNDS + 1):
        order = list(VARIANTS) if number % 2 == 0 else list(reversed(VARIANTS))
        for name in order:
            spent = seconds(steppers[name][0])
            if number:
                times[name].append(spent)
    memory = {}
    for name in VARIANTS:
        command = [sys.executable, __file__, "--peak", name]
        memory[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows = []
    for name in VARIANTS:
        ratios = [own / full for own, full in zip(times[name], times["full"], strict=True)]
        rows.append(
            (
                name,
                f"{steppers[name][1] / 1e6:.2f} M",
                f"{statistics.median(times[name]):.2f} s",
                f"{statistics.median(ratios):.2f}",
                f"{memory[name]:.0f} MB",
                f"{memory[name] / memory['full']:.2f}",
            )
        )
    header = (
        "what trains",
        "parameters",
        "a step",
        "time against full",
        "peak memory",
        "memory against full",
    )
    title = f"What trains (benchmarks/adapters.py): ViT-B-32, batch {BATCH}"
    return table(title, rows, header)


if __name__ == "__main__":
    print(peak(sys.argv[2]) if "--peak" in sys.argv else main())
