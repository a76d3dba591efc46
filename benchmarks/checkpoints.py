"""Checkpoints: bytes, seconds to write, and their share of run time at the default interval.

Run: python benchmarks/checkpoints.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from common import table
from step import setting

from everclip.config import CheckpointConfig
from everclip.training.checkpoint import Checkpoints
from everclip.training.engine import Engine
from everclip.training.watching import Cursor, OptimiserState, StepLog, Watcher

ROUNDS = 7


class Moments(Watcher):
    """Keeps the optimiser's tensors of the newest step."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def after_step(self, log: StepLog) -> bool:
        """Ask for the state after every step."""
        return True

    def save(self, cursor: Cursor, optimiser: OptimiserState) -> None:
        """Keep it."""
        self.tensors = optimiser()


def main() -> str:
    """Measure and return the table."""
    learner, task, _, training = setting()
    moments = Moments()
    engine = Engine(learner.accelerator, learner.engine.maker, learner.features, training, 0)
    engine.run(learner.method, learner.plan(task)[0], 0, watcher=moments)
    config = CheckpointConfig()
    seconds, size = [], 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), config)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            cursor = Cursor()
            path = checkpoints.save(learner.tensors(moments.tensors), learner.state(cursor))
            seconds.append(time.perf_counter() - started)
            size = sum(f.stat().st_size for f in path.iterdir())
    middle = sorted(seconds)[ROUNDS // 2]
    interval = max(config.every_seconds, middle / config.max_share)
    rows = [
        ("one checkpoint in the middle of a task (weights and both moments)", f"{size / 1e6:.1f} MB", ""),
        ("writing it, synced to disk and checksummed", f"{middle:.3f} s", ""),
        (
            f"share of run time at the default interval ({interval:.0f} s)",
            f"{100 * middle / interval:.2f} %",
            "<= 2 %",
        ),
    ]
    return table("Checkpoints of builtin:tiny (benchmarks/checkpoints.py)", rows, ("what", "median", "aim"))


if __name__ == "__main__":
    print(main())
