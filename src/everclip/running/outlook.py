"""How long a run still takes: each kind of work by the seconds that it was measured to take itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

from everclip.config import TrainingConfig
from everclip.contracts import Task
from everclip.training.progress import Now, Pace


def sizes_of(tasks: Sequence[Task], training: TrainingConfig) -> list[float]:
    """Return how much each task has to learn: its samples, or 1 where the budget gives every task equal steps."""
    equal = training.steps is not None or training.samples is not None
    return [1.0 if equal else float(len(task.train)) for task in tasks]


class Outlook:
    """Estimates the seconds left of a task and of a whole run.

    Steps count by the pace of their own phase, since steps of one phase may take a hundred times as long as those of
    another. A row of evaluation counts by the row before it. What a task does besides its steps (growing, encoding for
    frozen towers, merging) counts by the task before it.

    Args:
        sizes: how much each task has to learn, in one unit: its samples, or 1 where the budget counts steps.
        now: the clock, in seconds.
    """

    def __init__(self, sizes: Sequence[float], now: Now = time.monotonic) -> None:
        self._sizes, self._now = list(sizes), now
        self._paces: dict[str, Pace] = {}
        self._phases: list[tuple[str, int]] = []
        self._task, self._place = -1, (0, 0)
        self._since: float | None = None
        self._latest: float | None = None
        self._besides = 0.0
        self._learning = False
        self._row_began: float | None = None
        self._row: float | None = None
        self._pictures = Pace(now)
        self._pictures_left = 0

    # -- a task -----------------------------------------------------------------------------------------------

    def begin_task(self, task: int, phases: Sequence[tuple[str, int]], resumed: bool = False) -> None:
        """Begin to learn a task.

        Args:
            task: which one, from 0.
            phases: name and number of steps of each phase.
            resumed: whether a part of it was learned by another process, whose time is not known.
        """
        self._task, self._phases, self._place = task, list(phases), (0, 0)
        self._since, self._learning = (None if resumed else self._now()), True

    def step(self, phase: int, done: int) -> None:
        """Note that `done` steps of a phase (by its place) are done."""
        if phase < len(self._phases):
            if phase != self._place[0]:
                self._pace(self._place[0]).pause()
            self._place = (phase, done)
            self._pace(phase).mark(done)
            self._latest = self._pace(phase).seconds or self._latest

    def _pace(self, phase: int) -> Pace:
        return self._paces.setdefault(self._phases[phase][0], Pace(self._now))

    def step_seconds(self) -> float | None:
        """Return the seconds of a step of the present phase; `None` until they were measured."""
        return self._pace(self._place[0]).seconds if self._phases else None

    def task_left(self) -> float | None:
        """Return the seconds that the steps left of the task take; `None` where nothing was measured."""
        at, done = self._place
        left = [(name, steps) for name, steps in self._phases[at + 1 :]]
        here = self._phases[at : at + 1]
        return self._seconds_of([*((name, max(0, steps - done)) for name, steps in here), *left])

    def _seconds_of(self, phases: Sequence[tuple[str, int]]) -> float | None:
        """Return the seconds of steps; those of a phase that was never measured count as those measured last."""
        total = 0.0
        for name, steps in phases:
            pace = self._paces.get(name)
            seconds = self._latest if pace is None or pace.seconds is None else pace.seconds
            if seconds is None and steps:
                return None
            total += steps * (seconds or 0.0)
        return total

    def end_task(self) -> None:
        """End the task that was begun."""
        self._learning = False
        known = self._seconds_of(self._phases)
        if self._since is not None and known is not None:
            self._besides = max(0.0, self._now() - self._since - known)
        for pace in self._paces.values():
            pace.pause()
        if self._phases:
            self._place = (len(self._phases) - 1, self._phases[-1][1])

    def _besides_left(self) -> float:
        """Return the seconds left of what the present task does besides its steps."""
        known, left = self._seconds_of(self._phases), self.task_left()
        if self._since is None or known is None or left is None:
            return 0.0
        return max(0.0, self._besides - max(0.0, self._now() - self._since - (known - left)))

    # -- a row of evaluation ----------------------------------------------------------------------------------

    def know_rows(self, rows: int, seconds: float) -> None:
        """Take what rows took together in earlier sessions, until one is measured in this."""
        self._row = seconds / rows if rows else None

    def begin_row(self, task: int) -> None:
        """Begin to measure the row after a task; -1 is the row before the first."""
        self._task = task
        self._row_began, self._pictures, self._pictures_left = self._now(), Pace(self._now), 0

    def encoded(self, done: int, total: int) -> tuple[float | None, float | None]:
        """Note how many of the row's pictures are encoded; return the seconds left of the row and of the run."""
        self._pictures.mark(done)
        self._pictures_left = total - done
        return self.row_left(), self.run_left()

    def end_row(self) -> None:
        """End the row that was begun."""
        if self._row_began is not None:
            self._row = self._now() - self._row_began
        self._row_began = None

    def row_left(self) -> float | None:
        """Return the seconds left of the row that is being measured; `None` where nothing was measured."""
        if self._row_began is None:
            return None
        pace = self._pictures.seconds
        encoding = None if pace is None else pace * self._pictures_left
        if self._row is None:
            return encoding
        return max(encoding or 0.0, self._row - (self._now() - self._row_began))

    # -- the run ----------------------------------------------------------------------------------------------

    def run_left(self) -> float | None:
        """Return the seconds left of the run; `None` until a task and a row of evaluation have been measured."""
        measuring = self._row_began is not None
        if not (measuring or self._learning):
            return None
        now = self.row_left() if measuring else self.task_left()
        to_come = self._sizes[self._task + 1 :]
        rows = len(to_come) + (not measuring)
        one = self._seconds_of(self._phases) if self._phases else None
        if now is None or (rows and self._row is None) or (to_come and one is None):
            return None
        size = self._sizes[self._task] if 0 <= self._task < len(self._sizes) else 1.0
        tasks = sum((one or 0.0) * later / max(1e-9, size) + self._besides for later in to_come)
        return now + (0.0 if measuring else self._besides_left()) + tasks + rows * (self._row or 0.0)
