"""Following the learning of one task for a run: counting, showing, recording, saving."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from everclip.contracts import Task
from everclip.learner.following import Cursor
from everclip.training.engine import StepLog
from everclip.training.progress import Progress


class Followed(Protocol):
    """What is told of every step: the run."""

    progress: Progress

    def count(self, log: StepLog) -> bool:
        """Count one step; return whether a checkpoint is due after it."""

    def record(self, task: Task, cursor: Cursor, logs: Sequence[StepLog]) -> None:
        """Write steps to the log and to the trackers."""

    def save(self, cursor: Cursor, optimiser: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Write a checkpoint in the middle of a phase."""


class RunWatcher:
    """Follows the learning of one task for a run: counts, shows, records, saves."""

    def __init__(self, run: Followed, task: Task, cursor: Cursor) -> None:
        self._run, self._task, self._cursor = run, task, cursor
        self._clock = time.monotonic()

    def after_step(self, log: StepLog) -> bool:
        """Count a step; return whether a checkpoint is due."""
        return self._run.count(log)

    def report(self, logs: Sequence[StepLog]) -> None:
        """Show and record steps."""
        self._run.record(self._task, self._cursor, logs)
        loss = sum(float(value) for value in logs[-1].losses.values())
        before, self._clock = self._clock, time.monotonic()
        rate = sum(log.samples for log in logs) / max(1e-9, self._clock - before)
        self._run.progress.update(logs[-1].step + 1, f"loss {loss:.3f}  {rate:.0f} samples/s")

    def save(self, cursor: Cursor, optimiser: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Write a checkpoint."""
        self._run.save(cursor, optimiser)
