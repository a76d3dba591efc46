"""The cost of a step of SIT against the asymmetric loss, from 10 to 1,000 classes seen; and the wait for data.

`builtin:tiny`, adapters in both towers, batches of 32 generated images. The symmetric loss encodes
the texts of the batch's own classes; the asymmetric one those of all classes seen. Processor time of the calling thread
and of torch, so that other work on the machine plays no part.

Run: python benchmarks/sit_cost.py --plot benchmarks/sit-cost.png
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from common import machine, table
from matplotlib.figure import Figure
from PIL import Image

from everclip.config import BackboneConfig, MethodConfig, TrainingConfig
from everclip.contracts import ClassEntry
from everclip.data.table import Table
from everclip.learner.core import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone

CLASSES, BATCH, STEPS = (10, 100, 300, 1000), 32, 3


def pictures(classes: int, count: int, first: int = 0) -> Table:
    """Return rows of generated images of 64 x 64, classes in turn."""
    draw = np.random.default_rng(classes + first)
    images = []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
        images.append(file.getvalue())
    keys = [f"c{(first + i) % classes}" for i in range(count)]
    columns = {"id": [f"{first}-{i}" for i in range(count)], "image": pa.array(images, pa.binary())}
    return Table(pa.table({**columns, "class_key": keys, "class_name": [f"thing number {k}" for k in keys]}))


def learner_of(rule: str) -> Learner:
    """Return a learner whose steps know the classes of the batch, or all classes seen."""
    backbone = load_backbone(BackboneConfig(name="builtin:tiny"))
    method = build_method(MethodConfig(name="sit", settings={"classes": rule}), backbone)
    return Learner(method, TrainingConfig(epochs=1, batch_size=BATCH, workers=0))


def with_seen(learner: Learner, classes: int) -> None:
    """Let a learner have seen a number of classes, without learning them."""
    from everclip.learner.observing import LiveStream

    entries = tuple(ClassEntry(f"c{i}", f"thing number c{i}", ("{}",), (0,)) for i in range(classes))
    learner.live = LiveStream(classes=entries)


def seconds(rule: str, classes: int) -> list[float]:
    """Return the processor seconds of each batch, after one to warm up."""
    learner, found = learner_of(rule), []
    with_seen(learner, classes)
    for step in range(STEPS + 1):
        batch = pictures(classes, BATCH, step * BATCH)
        started = time.process_time()
        learner.observe(batch, templates=("{}",))
        found.append(time.process_time() - started)
    return found[1:]


def waiting() -> float:
    """Return the share of wall time that steps wait for their batch, with one worker."""
    learner = learner_of("batch")
    rows = pictures(100, 8 * BATCH)
    spent: dict[str, float] = {"data": 0.0}
    inner = learner.engine.maker.batches

    def timed(*given: Any) -> Any:
        source = inner(*given)
        while True:
            started = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            spent["data"] += time.perf_counter() - started
            yield batch

    object.__setattr__(learner.engine.maker, "batches", timed)
    from everclip.contracts import Task
    from everclip.scenarios.base import class_entries

    task = Task(0, "stream", rows, classes=class_entries(rows, ("{}",), (0,)), once=True)
    object.__setattr__(learner.engine, "config", learner.training.model_copy(update={"workers": 1}))
    started = time.perf_counter()
    learner.learn(task, show=False)
    return spent["data"] / (time.perf_counter() - started)


def draw(measured: Mapping[int, tuple[float, float]], file: Path) -> None:
    """Draw the seconds of a batch against the number of classes seen: classes -> (symmetric, asymmetric)."""
    figure = Figure((6.5, 4), layout="constrained")
    axes = figure.subplots()
    for index, (name, colour) in enumerate((("symmetric", "#0b62c4"), ("asymmetric", "#c04a00"))):
        values = [both[index] for both in measured.values()]
        axes.plot(list(measured), values, marker="os"[index], color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xticks(list(measured), [f"{classes:,}" for classes in measured])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("classes seen")
    axes.set_ylabel(f"processor seconds per batch of {BATCH}")
    axes.legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Measure, print and draw."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--plot", type=Path, help="where to draw the seconds against the classes seen, as PNG")
    given = words.parse_args()
    torch.set_num_threads(1)
    rows, measured = [], {}
    for classes in CLASSES:
        symmetric, asymmetric = (statistics.median(seconds(rule, classes)) for rule in ("batch", "seen"))
        measured[classes] = (symmetric, asymmetric)
        ratio = f"{asymmetric / symmetric:.1f}"
        rows.append((f"{classes:,}", f"{symmetric:.3f}", f"{asymmetric:.3f}", ratio))
    if given.plot:
        draw(measured, given.plot)
    head = ("classes seen", "symmetric, s per batch", "asymmetric, s per batch", "ratio")
    print(table(f"SIT: a step on {BATCH} images of `builtin:tiny`", rows, head))
    print(f"\nShare of wall time that steps wait for data, one worker: {100 * waiting():.1f} %. {machine()}")


if __name__ == "__main__":
    main()
