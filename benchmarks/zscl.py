"""A training step of ZSCL with the teacher's embeddings kept, against encoding the reference texts anew at every step.

ViT-B-16 with random weights, 224 px, generated JPEGs, 20 class prompts, 12,000 reference texts. What encoding anew adds
to a step is measured by itself: the teacher on the step's reference pictures, and on all texts. Without a GPU times are
processor time, the texts are extrapolated from the throughput of a block of them, and the published batch of 64 from
that of 8 (a step and the pictures cost eight times as much, the texts the same), which the table says.

Run: python benchmarks/zscl.py
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import table
from frozen import samples

from everclip.config import BackboneConfig, MethodConfig, TrainingConfig
from everclip.contracts import ClassEntry, Reference, Task
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.registry import method_entry
from everclip.training.columns import EmbeddingColumns
from everclip.training.watching import StepLog, Watcher

GPU = torch.cuda.is_available()
TEXTS, CLASSES, BLOCK = 12_000, 20, 256 if GPU else 64
BATCHES = (8, 64) if GPU else (8,)
STEPS = 12 if GPU else 4
PUBLISHED = 64
clock = time.perf_counter if GPU else time.process_time


class Repeated(EmbeddingColumns):
    """Encodes a block of the texts and repeats it: a step takes as long, the preparation does not."""

    def _bank(self, encoders: Any, encoder: Any, stream: Any, most: int | None = None) -> torch.Tensor:
        return super()._bank(encoders, encoder, stream, most or BLOCK)


class StepClock(Watcher):
    """Notes the time after every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_step(self, log: StepLog) -> bool:
        """Wait for the device, then note the time."""
        if GPU:
            torch.cuda.synchronize()
        self.times.append(clock())
        return False


def learner_of(batch: int) -> tuple[Learner, Task]:
    """Return a learner with the published losses, and a task of generated pictures."""
    backbone = load_backbone(BackboneConfig(name="ViT-B-16", weights="random"), 0)
    preset = method_entry("zscl")
    method = build_method(MethodConfig(name=preset.name, settings=dict(preset.settings)), backbone)
    device = "cuda" if GPU else "cpu"
    learner = Learner(
        method, TrainingConfig(steps=STEPS, batch_size=batch, lr=1e-5, device=device, workers=2)
    )
    data = samples()
    keys = [f"class {i % CLASSES}" for i in range(len(data))]
    data = data.with_column("class_key", keys)
    entries = tuple(ClassEntry(f"class {i}", f"class {i}", ("a photo of a {}.",)) for i in range(CLASSES))
    texts = tuple(f"a photograph of thing number {i} on a table in a room" for i in range(TEXTS))
    learner.reference = Reference(samples().select(range(2 * batch)) if batch < 32 else samples(), texts)
    if not GPU:
        learner.engine.columns = Repeated(learner.engine.maker, learner.features)
    return learner, Task(0, "generated", data, classes=entries)


def step_seconds(learner: Learner, task: Task) -> float:
    """Return the median seconds of a step, its update included; the first two warm up."""
    learner.method.begin_task(task, learner.past())
    steps = StepClock()
    learner.engine.run(learner.method, learner.plan(task)[0], 0, watcher=steps)
    return statistics.median(b - a for a, b in itertools.pairwise(steps.times[1:]))


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of a call, after one to warm up."""
    for _ in range(2):
        started = clock()
        work()
        if GPU:
            torch.cuda.synchronize()
        found = clock() - started
    return found


@torch.no_grad()
def teacher_seconds(learner: Learner, batch: int) -> tuple[float, float]:
    """Return the seconds of the teacher on a batch of pictures, and on all texts."""
    teacher = learner.method.teacher_of("initial")
    device = next(teacher.parameters()).device
    pixels = torch.randn(batch, 3, 224, 224, device=device)
    tokens = teacher.tokenise(
        [f"a photograph of thing number {i} on a table in a room" for i in range(BLOCK)]
    )
    tokens = tokens.to(device)
    blocks = TEXTS / BLOCK if not GPU else -(-TEXTS // BLOCK)
    repeats = blocks if GPU else 1

    def texts() -> None:
        for _ in range(int(repeats)):
            teacher.encode_text(tokens)

    found = seconds(texts)
    return seconds(lambda: teacher.encode_image(pixels)), found if GPU else found * blocks


def main() -> str:
    """Measure and return the table."""
    rows: list[tuple[str, ...]] = []
    how = "measured" if GPU else f"extrapolated from {BLOCK}"
    for batch in BATCHES:
        learner, task = learner_of(batch)
        step = step_seconds(learner, task)
        images, texts = teacher_seconds(learner, batch)
        name = f"batch {batch} + {batch} reference pictures"
        rows.append((f"{name}: step, embeddings kept", f"{step:.3f} s", ""))
        rows.append((f"{name}: teacher on the reference pictures", f"{images:.3f} s", ""))
        rows.append((f"{name}: teacher on {TEXTS:,} texts ({how})", f"{texts:.2f} s", ""))
        rows.append(
            (f"{name}: ratio", f"{(step + images + texts) / step:.1f}", ">= 20" if batch == 8 else "")
        )
        if not GPU:
            more = PUBLISHED / batch
            ratio = (more * (step + images) + texts) / (more * step)
            rows.append((f"ratio at {PUBLISHED} + {PUBLISHED}, extrapolated from it", f"{ratio:.1f}", ""))
    title = "ZSCL (benchmarks/zscl.py): ViT-B-16, random weights"
    if GPU:
        title += f", {torch.cuda.get_device_name()}"
    return table(title, rows, ("what", "measured", "aim"))


if __name__ == "__main__":
    print(main())
