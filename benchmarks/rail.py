"""Learning a task by RAIL from cached features against fine-tuning on it; recursion against the joint solution.

ViT-B/16 shapes with random weights, a task of 100 classes x 16 pictures, generated. Fine-tuning is the cheapest kind:
the image tower alone, beside cached class texts; measured over `STEPS` steps and extrapolated to one epoch and to the
1,000 steps of 64 that MTIL publishes. All times are processor time, so that other work on the machine plays no part.

Run: python benchmarks/rail.py
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pyarrow as pa
import torch
from common import table

from everclip.config import BackboneConfig, MethodConfig, TrainingConfig
from everclip.contracts import Batch, ClassEntry, Past, Phase, Progress, Task
from everclip.data.table import Table
from everclip.methods.base import Method
from everclip.methods.build import build_method
from everclip.methods.rail.expand import Expansion
from everclip.methods.rail.method import Rail
from everclip.methods.rail.primal import Recursive, Sums
from everclip.methods.trainable import decay_groups
from everclip.models.backbone import Backbone, load_backbone
from everclip.training.modes import set_modes
from everclip.training.optim import build_optimiser

CLASSES, SHOTS, WIDTH, BATCH, STEPS = 100, 16, 512, 4, 3
PUBLISHED = 1000 * 64
"""Samples that MTIL's published fine-tuning goes through per task."""

AT = Progress(0, "bench", 0, 0, 1, 0)


def task() -> Task:
    """Return a task of the right size; what is learned from are features."""
    count = CLASSES * SHOTS
    columns = {"id": [str(i) for i in range(count)], "image": pa.array([b""] * count, pa.binary())}
    classes = tuple(ClassEntry(str(i), f"thing {i}") for i in range(CLASSES))
    return Task(0, "generated", Table(pa.table(columns), name="generated"), classes=classes)


def features(count: int, seed: int = 0) -> torch.Tensor:
    """Return unit features `(count, WIDTH)`."""
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=draw), dim=1)


def seconds_of_rail(backbone: Backbone, settings: dict[str, Any]) -> tuple[float, Rail]:
    """Return how long a task takes from its cached features, and the method after it."""
    method = build_method(MethodConfig(name="rail", settings=settings), backbone)
    assert isinstance(method, Rail)
    x, labels, learned = features(CLASSES * SHOTS), torch.arange(CLASSES * SHOTS) % CLASSES, task()
    started = time.process_time()
    method.begin_task(learned, Past())
    with torch.no_grad():
        for start in range(0, len(x), 128):
            part = slice(start, start + 128)
            method({"main": {"image_embedding": x[part], "label": labels[part]}}, AT)
        method.end_phase(learned, Phase("regress", {}))
    return time.process_time() - started, method


def seconds_of_step(backbone: Backbone) -> list[float]:
    """Return the seconds of each measured step of fine-tuning, after one to warm up."""
    method: Method = build_method(MethodConfig(settings={"trainable": ["image"]}), backbone)
    method.mark_trainable()
    set_modes(method, training=True)
    names = [n for n, p in method.named_parameters() if p.requires_grad]
    phase = Phase("bench", {}, decay_groups(names, method))
    optimiser = build_optimiser(method, phase, TrainingConfig(steps=1, lr=1e-5))
    draw = torch.Generator().manual_seed(0)
    batch: Batch = {
        "main": {
            "image": torch.randn(BATCH, 3, 224, 224, generator=draw),
            "class_embedding": features(CLASSES),
            "label": torch.arange(BATCH),
        }
    }
    times = []
    for _ in range(STEPS + 1):
        started = time.process_time()
        losses = method(batch, AT)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        times.append(time.process_time() - started)
    return times[1:]


def apart(width: int = 512, tasks: int = 3) -> float:
    """Return the largest relative difference between recursion, task by task, and the joint solution."""
    ridge = 0.1 * width / 15_000
    recursive, joint = (
        kind(Expansion("relu", WIDTH, width, 0.1, 0), width, ridge) for kind in (Recursive, Sums)
    )
    joint.widen(10 * tasks)
    for number in range(tasks):
        x, labels = features(200, number), 10 * number + torch.arange(200) % 10
        recursive.widen(10 * (number + 1))
        for start in range(0, len(x), 64):
            recursive.add(x[start : start + 64], labels[start : start + 64])
        joint.add(x, labels)
    joint.solve()
    return float((recursive.weights - joint.weights).abs().max() / joint.weights.abs().max())


def main() -> str:
    """Measure and return the table."""
    backbone = load_backbone(BackboneConfig(name="ViT-B-16", weights="random"), 0)
    found = {
        "primal, sums": seconds_of_rail(backbone, {}),
        "dual": seconds_of_rail(backbone, {"form": "dual"}),
    }
    with torch.inference_mode():
        started = time.process_time()
        backbone.encode_image(torch.randn(BATCH, 3, 224, 224))
        encoding = (time.process_time() - started) / BATCH * CLASSES * SHOTS
    steps = seconds_of_step(backbone)
    step = statistics.median(steps)
    epoch, published = (step / BATCH * count for count in (CLASSES * SHOTS, PUBLISHED))
    rows: list[tuple[str, ...]] = [
        (f"a step of fine-tuning the image tower, batch {BATCH} (median of {STEPS})", f"{step:.2f} s", ""),
        (f"one epoch of it ({CLASSES * SHOTS:,} pictures), extrapolated", f"{epoch:,.0f} s", ""),
        ("1,000 steps of 64, extrapolated", f"{published:,.0f} s", ""),
        ("encoding the task's pictures once, extrapolated from one batch", f"{encoding:,.0f} s", ""),
    ]
    for name, (seconds, method) in found.items():
        cost = method.describe()
        kept = cost.bytes - sum(p.numel() * p.element_size() for p in method.parameters())
        rows += [
            (f"{name}: the task from cached features", f"{seconds:.2f} s, {kept / 1e6:,.0f} MB of state", ""),
            (f"{name}: faster than one epoch of fine-tuning", f"{epoch / seconds:,.0f} x", ">= 100"),
            (f"{name}: faster than 1,000 steps of 64", f"{published / seconds:,.0f} x", ""),
        ]
    rows.append(("recursion against the joint solution, float64, relative", f"{apart():.1e}", "<= 1e-4"))
    title = f"RAIL (benchmarks/rail.py): ViT-B/16 shapes, {CLASSES} classes x {SHOTS}"
    return table(title, rows, ("what", "measured", "aim"))


if __name__ == "__main__":
    print(main())
