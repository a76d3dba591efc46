"""`everclip diagnose` on 10,000 images and 10,000 texts: which share of the time does encoding take?

Run: python benchmarks/diagnose.py [ITEMS]
Both models are `builtin:photo`; the second has other weights in its last blocks. The images are random.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from common import table
from PIL import Image

from everclip.contracts import EvalSet
from everclip.data.table import Table
from everclip.diagnosis.diagnose import Options, Target, diagnose
from everclip.features.service import FeatureService
from everclip.learner.core import Learner
from everclip.learner.evaluate import load_model
from everclip.scenarios.measuring import MeasuredSets

ITEMS = 10_000
SIDE = 96


def pairs(items: int) -> Table:
    """Return random images, each with a caption of its own."""
    draw = np.random.default_rng(0)
    images = []
    for _ in range(items):
        small = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8), "RGB")
        file = io.BytesIO()
        small.resize((SIDE, SIDE)).save(file, "JPEG")
        images.append(file.getvalue())
    words = [
        f"{a} {b}"
        for a in ("red", "blue", "old", "small", "round")
        for b in ("car", "dog", "tree", "cup", "hat")
    ]
    captions = [f"a photo of a {words[i % 25]} and a {words[i // 25 % 25]}, number {i}" for i in range(items)]
    ids = [str(i) for i in range(items)]
    return Table(
        pa.table({"id": ids, "image": pa.array(images, pa.binary()), "caption": captions}), name="pairs"
    )


def changed() -> Learner:
    """Return the model with other weights in the last blocks of both towers."""
    learner = load_model("builtin:photo")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in learner.method.backbone.clip.named_parameters():
            if ".mlp.c_proj.weight" in name:
                values.add_(0.01 * torch.randn(values.shape, generator=generator))
    return learner


def main(items: int = ITEMS) -> str:
    """Measure and return the table."""
    spent = {"encode": 0.0}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent["encode"] += time.perf_counter() - started

        return call

    FeatureService.images = timed(FeatureService.images)  # type: ignore[method-assign]
    FeatureService.texts = timed(FeatureService.texts)  # type: ignore[method-assign]
    data = pairs(items)
    target = Target("pairs", MeasuredSets((EvalSet("pairs", "retrieval", data),)), {"pairs": "kept"})
    old, new = load_model("builtin:photo"), changed()
    started = time.perf_counter()
    found = diagnose(old, new, ("old", "new"), [target], Options()).diagnosis
    whole = time.perf_counter() - started
    rows = [
        (f"encode {items:,} images and {items:,} texts with both models", f"{spent['encode']:.0f} s", ""),
        ("everything", f"{whole:.0f} s", ""),
        ("share of encoding", f"{spent['encode'] / whole:.1%}", ">= 90 %"),
        ("verdict", found.verdict.state, ""),
    ]
    return table("Diagnosis of two models (benchmarks/diagnose.py)", rows, ("what", "time", "aim"))


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
