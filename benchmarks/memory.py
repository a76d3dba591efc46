"""The estimated memory of a training step against what a process took.

Each way learns three steps of plain fine-tuning on generated pairs, in a process of its own. Measured is the growth of
the peak of its resident memory (on a GPU: of the memory that torch allocated) over the process before the first step;
the estimate, made in another process, is compared without the weights, which were there before.

Run: python benchmarks/memory.py                        prints a table
     python benchmarks/memory.py --way NAME step        one way (`step` or `estimate`)
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from common import table
from PIL import Image

import everclip
from everclip.learner import Learner
from everclip.learner.memory_check import need_of

WAYS: dict[str, dict[str, Any]] = {
    "batch 64": {"batch_size": 64},
    "batch 256": {"batch_size": 256},
    "batch 256, recompute": {"batch_size": 256, "recompute": True},
    "batch 256, chunks of 32": {"batch_size": 256, "chunk": 32},
}


def peak() -> float:
    """Return the peak memory of this process in bytes."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def one(way: str, what: str) -> None:
    """Estimate, or take steps, and print the bytes."""
    training = {"steps": 3, "threads": 1, "workers": 0, **WAYS[way]}
    learner = Learner.create("builtin:tiny", "finetune", training)
    draw = np.random.default_rng(0)
    pairs = [
        {"image": Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)), "caption": f"number {i}"}
        for i in range(512)
    ]
    task = everclip.make_task(pairs)
    if what == "estimate":
        learner.method.begin_task(task, learner.past())
        need = need_of(learner.engine, learner.method, learner.plan(task))
        assert need is not None
        print(json.dumps({"bytes": need.total - need.weights}))
        return
    before = peak()
    learner.learn(task)
    print(json.dumps({"bytes": peak() - before}))


def main() -> None:
    """Run each way in two processes of its own, then print the table."""
    if sys.argv[1:2] == ["--way"]:
        one(sys.argv[2], sys.argv[3])
        return
    rows = []
    for way in WAYS:
        found = {}
        for name, what in {"estimate": "estimate", "exact": "step", "usual": "step"}.items():
            call = [sys.executable, __file__, "--way", way, what]
            # The allocator of the C library keeps freed memory, unless every block is mapped by itself.
            env = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "65536"} if name == "exact" else {})}
            done = subprocess.run(call, capture_output=True, text=True, check=True, env=env)
            found[name] = json.loads(done.stdout.strip().splitlines()[-1])["bytes"]
        rows.append(
            (
                way,
                f"{found['estimate'] / 1e6:,.0f} MB",
                f"{found['exact'] / 1e6:,.0f} MB",
                f"{found['estimate'] / found['exact']:.2f}",
                f"{found['usual'] / 1e6:,.0f} MB",
                f"{found['estimate'] / found['usual']:.2f}",
            )
        )
    title = "Estimated memory of a step (benchmarks/memory.py): builtin:tiny, captions"
    header = ("way", "estimate", "measured, freed memory given back", "ratio", "measured as usual", "ratio")
    print(table(title, rows, header))


if __name__ == "__main__":
    main()
