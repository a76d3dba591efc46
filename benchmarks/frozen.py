"""Epochs of training beside a frozen tower: the first one encodes each sample, the following ones look it up.

ViT-B-32 with random weights, 224 px, generated JPEGs, one after the other in one process.

Run: python benchmarks/frozen.py
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from common import table
from PIL import Image

from everclip.config import BackboneConfig, MethodConfig, TrainingConfig
from everclip.contracts import Task
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.training.watching import StepLog, Watcher

SAMPLES, BATCH, EPOCHS = 64, 16, 3


class EpochClock(Watcher):
    """Notes the time after every `per_epoch` steps."""

    def __init__(self, per_epoch: int) -> None:
        self._per_epoch, self._steps, self.times = per_epoch, 0, [time.perf_counter()]

    def after_step(self, log: StepLog) -> bool:
        """Count a step."""
        self._steps += 1
        if self._steps % self._per_epoch == 0:
            self.times.append(time.perf_counter())
        return False


def samples() -> Table:
    """Return generated photographs' stand-ins of 320 x 240 with a caption each."""
    draw = np.random.default_rng(0)
    images = []
    for _ in range(SAMPLES):
        coarse = draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG")
        images.append(file.getvalue())
    columns = {
        "id": [str(i) for i in range(SAMPLES)],
        "image": pa.array(images, pa.binary()),
        "caption": [f"picture number {i}" for i in range(SAMPLES)],
    }
    return Table(pa.table(columns), name="generated")


def epochs(data: Table, trainable: Sequence[Any], cache: bool) -> list[float]:
    """Return the seconds of each epoch; the first holds the encoding."""
    backbone = load_backbone(BackboneConfig(name="ViT-B-32", weights="random"), 0)
    method = build_method(MethodConfig(settings={"trainable": list(trainable)}), backbone)
    config = TrainingConfig(
        epochs=EPOCHS, batch_size=BATCH, lr=1e-4, augment=None, cache=cache, workers=0, device="cpu"
    )
    learner = Learner(method, config)
    task = Task(0, "generated", data)
    method.begin_task(task, learner.past())
    clock = EpochClock(SAMPLES // BATCH)
    learner.engine.run(method, learner.plan(task)[0], 0, watcher=clock)
    return [b - a for a, b in itertools.pairwise(clock.times)]


def main() -> str:
    """Measure and return the table."""
    data, rows = samples(), []
    for name, trainable, aim in (
        ("both towers frozen (logit scale trains)", ["logit-scale"], ">= 20"),
        ("image tower frozen, text projection trains", ["text-projection"], ""),
    ):
        found = epochs(data, trainable, cache=True)
        later = sorted(found[1:])[len(found[1:]) // 2]
        rows.append((f"{name}: first epoch", f"{found[0]:.2f} s", ""))
        rows.append((f"{name}: a later epoch", f"{later:.3f} s", ""))
        rows.append((f"{name}: ratio", f"{found[0] / later:.0f}", aim))
    without = epochs(data, ["logit-scale"], cache=False)
    rows.append(("both towers frozen, cache off: a later epoch", f"{sorted(without[1:])[0]:.2f} s", ""))
    title = f"Frozen towers (benchmarks/frozen.py): ViT-B-32, {SAMPLES} samples, batch {BATCH}"
    return table(title, rows, ("what", "measured", "aim"))


if __name__ == "__main__":
    print(main())
