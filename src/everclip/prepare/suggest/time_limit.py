"""Keeps a trial within its time: if the machine becomes slower, the trial starts again, once, with fewer steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from everclip.config import TrainingConfig
from everclip.contracts import Phase, Task
from everclip.errors import EverclipError
from everclip.learner.learn_progress import LearnProgress
from everclip.training.progress import Now, Progress
from everclip.training.watching import StepLog

TOO_MUCH = 2.0
"""A trial that would take more than this multiple of its time limit starts again."""

MIN_STEPS, MIN_SHARE = 3, 0.2
"""Steps and share of the time limit after which the speed of a trial is known."""

Result = TypeVar("Result")


class Slower(EverclipError):
    """A trial would take too long; a step now takes `step_seconds`."""

    def __init__(self, step_seconds: float) -> None:
        super().__init__(f"a step takes {step_seconds:.1f} s")
        self.step_seconds = step_seconds


class TimeLimit(LearnProgress):
    """Shows a trial, and raises `Slower` if its steps would take far longer than allowed.

    The first step is not timed, since it includes preparations.

    Args:
        task, phases, training, progress: see `LearnProgress`.
        limit: time limit of the steps in seconds; may be infinite.
        now: the clock.
    """

    def __init__(
        self,
        task: Task,
        phases: Sequence[Phase],
        training: TrainingConfig,
        progress: Progress,
        limit: float,
        now: Now = time.monotonic,
    ) -> None:
        super().__init__(task, phases, training, progress)
        self._limit, self._now, self._first = limit, now, 0.0

    def after_step(self, log: StepLog) -> bool:
        """Count a step and check the time."""
        due = super().after_step(log)
        if self._done == 1:
            self._first = self._now()
        taken, steps = self._now() - self._first, self._done - 1
        known = steps >= MIN_STEPS and taken >= MIN_SHARE * self._limit
        if known and taken * self._total / steps > TOO_MUCH * self._limit:
            raise Slower(taken / steps)
        return due


def within_time(
    attempt: Callable[[int, float], Result], steps: int, seconds: float, show: Progress
) -> Result:
    """Return the result of an attempt, or of a second attempt with as many steps as fit the remaining time.

    Args:
        attempt: called with steps and their time limit in seconds; may raise `Slower`.
        steps: steps of the first attempt.
        seconds: time limit.
        show: shows a note on the second attempt.
    """
    try:
        return attempt(steps, seconds)
    except Slower as slower:
        fewer = max(1, int(seconds * (1 - MIN_SHARE) / slower.step_seconds))
        show.say(f"the machine became slower: the trial starts again with {fewer:,} steps")
        return attempt(fewer, float("inf"))
