"""Keeps a trial within its time on a machine that becomes slower: it begins again, once, with fewer steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from everclip.config import TrainingConfig
from everclip.contracts import Phase, Task
from everclip.errors import EverclipError
from everclip.learner.showing import Shown
from everclip.training.progress import Now, Progress
from everclip.training.watching import StepLog

TOO_MUCH = 2.0
"""A trial that would take more than so many times what is allowed begins again."""

SEEN, WAITED = 3, 0.2
"""Steps, and share of the time, after which the pace of a trial is known."""

Result = TypeVar("Result")


class Slower(EverclipError):
    """A trial would take too long; `step_seconds` is what a step takes now."""

    def __init__(self, step_seconds: float) -> None:
        super().__init__(f"a step takes {step_seconds:.1f} s")
        self.step_seconds = step_seconds


class TimeLimit(Shown):
    """Shows a trial, and raises `Slower` where its steps would take far longer than allowed.

    The first step is not counted: it also prepares what the others use.

    Args:
        task, phases, training, progress: as of `Shown`.
        limit: seconds that the steps may take; infinite: no limit.
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
        """Count a step and look at the clock."""
        due = super().after_step(log)
        if self._done == 1:
            self._first = self._now()
        taken, steps = self._now() - self._first, self._done - 1
        known = steps >= SEEN and taken >= WAITED * self._limit
        if known and taken * self._total / steps > TOO_MUCH * self._limit:
            raise Slower(taken / steps)
        return due


def within_time(
    attempt: Callable[[int, float], Result], steps: int, seconds: float, show: Progress
) -> Result:
    """Return the result of an attempt with so many steps, or of a second one with as many as fit the time left.

    Args:
        attempt: takes steps and the seconds that they may take; may raise `Slower`.
        steps: of the first attempt.
        seconds: that they may take.
        show: where the second attempt is said.
    """
    try:
        return attempt(steps, seconds)
    except Slower as slower:
        fewer = max(1, int(seconds * (1 - WAITED) / slower.step_seconds))
        show.say(f"the machine became slower: the trial begins again with {fewer:,} steps")
        return attempt(fewer, float("inf"))
