"""Cost of a time step against the number of steps before it: flat for TiC-CLIP's budgeted ways, not for `oracle`.

Run: python benchmarks/time_steps.py [--steps 50] [--ways finetune cumulative-exp ...]

A stream of 50 equal time steps is learned by every way, all of them at one time step before any at the next, so that a
machine that changes favours none. What is compared is processor time against `finetune` at the same time step (median
of the ratios): in the last ten time steps, and in ten early ones (the first two pay for caches and are left out). The
model has two small blocks and a time step a few optimiser steps, so what grows beside the training itself (buffers,
mixing, orders) weighs as much as it can.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from common import table
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file

from everclip.contracts import Task
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.learner.tasks import make_task

WAYS = (
    "finetune",
    "cumulative-all",
    "cumulative-exp",
    "cumulative-equal",
    "wise-ft",
    "lwf-tic",
    "restart",
    "oracle",
)
ROWS, BATCH, OPTIMISER_STEPS = 48, 16, 3
BASELINE = "finetune"
EARLY, LATE = slice(2, 12), slice(-10, None)


def step_of(number: int) -> Task:
    """Return a time step of its own images and captions."""
    draw = np.random.default_rng(number)
    images = [picture(draw) for _ in range(ROWS)]
    ids = [f"{number}-{i}" for i in range(ROWS)]
    captions = [f"thing {draw.integers(1000)} of step {number}" for _ in range(ROWS)]
    rows = Table(
        pa.table({"id": ids, "image": pa.array(images, pa.binary()), "caption": captions}), name=f"{number}"
    )
    return make_task(rows, index=number, validation=0.15)


def picture(draw: np.random.Generator) -> bytes:
    """Return a small picture of random colours."""
    out = io.BytesIO()
    Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def measure(model: str, ways: list[str], steps: int) -> dict[str, list[float]]:
    """Return way -> processor seconds of each time step."""
    training = {
        "steps": OPTIMISER_STEPS,
        "batch_size": BATCH,
        "lr": 1e-4,
        "threads": 1,
        "device": "cpu",
        "augment": None,
    }
    ways = list(dict.fromkeys((BASELINE, *ways)))
    learners = {way: Learner.create(model, way, training) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(steps):
        task = step_of(number)
        for way in ways if number % 2 else reversed(ways):
            started = time.process_time()
            learners[way].learn(task, show=False)
            seconds[way].append(time.process_time() - started)
    return seconds


def main() -> str:
    """Measure and return the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--steps", type=int, default=50)
    words.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    words.add_argument("--model", default="", help="a backbone; default: two blocks of width 32, random")
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(given.model or small(Path(folder)), given.ways, given.steps)
    plain = seconds[BASELINE]
    rows = []
    for way, of in seconds.items():
        ratios = [mine / base for mine, base in zip(of, plain, strict=True)]
        early, late = statistics.median(ratios[EARLY]), statistics.median(ratios[LATE])
        milliseconds = f"{1000 * statistics.median(of):.0f} ms"
        rows.append((way, milliseconds, f"{early:.2f} x", f"{late:.2f} x", f"{late / early:.2f} x"))
    title = f"Cost of a time step, early and late in {given.steps} steps (benchmarks/time_steps.py)"
    head = ("way", "processor time, median", "steps 3 to 12, against finetune", "last ten, against finetune")
    return table(title, rows, (*head, "late / early"))


def small(folder: Path) -> str:
    """Write a random CLIP of two blocks in open_clip's layout, and return its folder."""
    tower = {"width": 32, "layers": 2, "mlp_ratio": 2.0}
    config = {
        "embed_dim": 32,
        "vision_cfg": {**tower, "image_size": 16, "patch_size": 8, "head_width": 16},
        "text_cfg": {**tower, "context_length": 12, "vocab_size": 514, "heads": 2},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    (folder / "merges.txt.gz").write_bytes(gzip.compress(b"#version: small", mtime=0))
    torch.manual_seed(0)
    save_file(CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return str(folder)


if __name__ == "__main__":
    print(main())
