"""An 11 x 11 evaluation in one process against one process per cell, as the published scripts do; memory over the rows.

ViT-B/16 shapes with random weights, 11 sets of 32 generated pictures and 20 classes, each scored among its own names.
Whole processes of single cells are measured and extrapolated to 121. A cell's process starts Python, reads the weights
from a file, encodes 32 pictures and its class names, and scores. In one process

* a method whose towers stay as they are (zero-shot, rail) encodes everything once: all 11 rows are measured;
* a method that trains both towers must encode everything again at each row: the first row is measured and
  extrapolated to 11. What is left to gain is starting and loading, so the ratio hangs on how fast the tower is.

All times are processor time, so that other work on the machine plays no part.

Run: python benchmarks/matrix.py [pictures per set]        prints a table
     python benchmarks/matrix.py --cell WEIGHTS PICTURES   does the work of one cell
     python benchmarks/matrix.py --memory                  prints the peak memory of each of 11 rows, towers changed
                                                           at each (a picture and a name per set)
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from common import table
from PIL import Image
from safetensors.torch import save_file

from everclip.config import BackboneConfig, EvaluationConfig, MethodConfig
from everclip.contracts import ClassEntry, EvalProtocol, EvalSet
from everclip.data.pictures.images import ImageStore
from everclip.data.table import Table
from everclip.evaluation.scoring import RowScorer
from everclip.evaluation.set_features import SetFeatures
from everclip.features.service import FeatureService
from everclip.methods.base import Method
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.scenarios.base import ListScenario

TASKS, PICTURES, CLASSES, CELLS = 11, 32, 20, 2
AIM = 10


def eval_set(number: int, pictures: int, classes: int = CLASSES) -> EvalSet:
    """Return a set of generated JPEGs of 224 px."""
    draw = np.random.default_rng(number)
    images = []
    for _ in range(pictures):
        file = io.BytesIO()
        coarse = Image.fromarray(draw.integers(0, 255, (7, 7, 3), dtype=np.uint8))
        coarse.resize((224, 224), Image.Resampling.BICUBIC).save(file, "JPEG")
        images.append(file.getvalue())
    keys = [f"set {number}, thing {i % classes}" for i in range(pictures)]
    columns = {
        "id": [f"{number}-{i}" for i in range(pictures)],
        "image": pa.array(images, pa.binary()),
        "class_key": keys,
    }
    names = [f"set {number}, thing {i}" for i in range(classes)]
    entries = tuple(ClassEntry(name, name, ("a photo of a {}.",), (number,)) for name in names)
    return EvalSet(f"set {number}", "classification", Table(pa.table(columns)), number, classes=entries)


def scorer(method: Method, sets: list[EvalSet]) -> RowScorer:
    """Return what scores the sets, each among its own names."""
    spec: Any = SimpleNamespace(headline=SimpleNamespace(protocol="own"))
    scenario = ListScenario(spec, (), tuple(sets), (EvalProtocol("own"),))
    features = SetFeatures(sets, FeatureService(ImageStore()), PICTURES)
    return RowScorer(scenario, features, EvaluationConfig(), 0, {})


def method_of(weights: str) -> Method:
    """Return the model in a file, or with random weights, as a method that does not train."""
    backbone = load_backbone(BackboneConfig(name="ViT-B-16", weights=weights), 0)
    return build_method(MethodConfig(name="zero-shot", settings={"trainable": []}), backbone)


def rows(method: Method, sets: list[EvalSet], change: bool = False) -> tuple[list[float], list[float]]:
    """Measure all rows; return the seconds of each and the peak memory in MB after each."""
    scores, seconds, memory = scorer(method, sets), [], []
    for number in range(TASKS):
        if change:
            with torch.no_grad():
                for parameter in method.backbone.clip.parameters():
                    parameter.mul_(1.001)
        started = spent()
        scores.row(method, set(range(number + 1)), lambda done, total: None)
        seconds.append(spent() - started)
        memory.append(peak())
    return seconds, memory


def spent() -> float:
    """Return the processor time of this process and of those it has waited for, in seconds."""
    return sum(os.times()[:4])


def peak() -> float:
    """Return the peak memory of this process in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def cells(weights: Path, pictures: int) -> list[float]:
    """Return the seconds of whole processes, one per cell."""
    seconds = []
    for _ in range(CELLS):
        started = spent()
        subprocess.run([sys.executable, __file__, "--cell", str(weights), str(pictures)], check=True)
        seconds.append(spent() - started)
    return seconds


def main(pictures: int = PICTURES) -> str:
    """Measure and return the table."""
    with tempfile.TemporaryDirectory() as folder:
        method, weights = method_of("random"), Path(folder) / "weights.safetensors"
        save_file({k: v.clone() for k, v in method.backbone.clip.state_dict().items()}, weights)
        cell = statistics.median(cells(weights, pictures))
    seconds, _ = rows(method, [eval_set(number, pictures) for number in range(TASKS)])
    command = [sys.executable, __file__, "--memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    memory = [float(value) for value in done.stdout.split()]
    apart, frozen, trained = cell * TASKS**2, sum(seconds), seconds[0] * TASKS
    found: list[tuple[str, ...]] = [
        (f"the process of one cell (median of {CELLS})", f"{cell:.1f} s", ""),
        (f"{TASKS**2} such processes, extrapolated", f"{apart:,.0f} s", ""),
        ("one process, towers that stay: 11 rows", f"{frozen:.1f} s", ""),
        ("ratio", f"{apart / frozen:.1f} x", f">= {AIM}"),
        ("a later row of it", f"{statistics.median(seconds[1:]):.2f} s", ""),
        ("one process, both towers trained: 11 rows, extrapolated from the first", f"{trained:,.0f} s", ""),
        ("ratio: what starting and loading cost beside a slow tower", f"{apart / trained:.1f} x", ""),
        ("peak memory after row 1, towers changed at each row", f"{memory[0]:,.0f} MB", ""),
        (f"peak memory after row {TASKS}", f"{memory[-1]:,.0f} MB", "flat"),
    ]
    title = (
        f"{TASKS} x {TASKS} evaluation (benchmarks/matrix.py): ViT-B/16 shapes, {pictures} pictures per set"
    )
    return table(title, found, ("what", "measured", "aim"))


if __name__ == "__main__":
    if "--cell" in sys.argv:
        scorer(own := method_of(sys.argv[2]), [eval_set(0, int(sys.argv[3]))]).row(
            own, {0}, lambda done, total: None
        )
    elif "--memory" in sys.argv:
        small = [eval_set(number, 1, 1) for number in range(TASKS)]
        print(*rows(method_of("random"), small, change=True)[1])
    else:
        print(main(*map(int, sys.argv[1:])))
