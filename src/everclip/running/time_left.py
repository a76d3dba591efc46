"""Estimates how long a run still takes, from the measured time of each kind of work."""

from __future__ import annotations

import time
from collections.abc import Sequence

from everclip.config import TrainingConfig
from everclip.contracts import Task
from everclip.methods.settings import MethodSettings, ReplaySettings, SlotsWithoutReplay
from everclip.training.progress import Now, Pace


def sizes_of(tasks: Sequence[Task], training: TrainingConfig, settings: MethodSettings) -> list[float]:
    """Return the relative number of steps of each task.

    A budget in epochs gives a task steps in proportion to its samples, another budget gives all tasks equal steps. Both
    grow with `method.budget=cumulative`, and with replayed samples that are added to the task's own.

    Args:
        tasks: all tasks of the run, in order.
        training: holds the budget.
        settings: of the method.
    """
    rows = [len(task.train) for task in tasks]
    sizes = [1.0 if training.epochs is None else float(count) for count in rows]
    if not isinstance(settings, SlotsWithoutReplay):
        return sizes
    if training.epochs is not None or training.samples is not None:
        replay = settings.replaying
        sizes = [size * _stretch(replay, rows, task) for task, size in enumerate(sizes)]
    growing = settings.budgets == "cumulative"
    return [size * (task + 1 if growing else 1) for task, size in enumerate(sizes)]


def _stretch(replay: ReplaySettings, rows: Sequence[int], task: int) -> float:
    """Return the factor on a task's steps if replayed samples are added to its own."""
    if not replay.beside or replay.use == "distil" or replay.kind == "none" or task == 0:
        return 1.0
    if replay.share is not None:
        return 1 / (1 - replay.share)
    most = replay.size if replay.times is None else replay.times * rows[task - 1]
    stored = sum(rows[:task])
    return 1 + (stored if replay.kind == "all" else min(most, stored)) / rows[task]


class TimeLeft:
    """Estimates the seconds left of a task and of a whole run.

    Each phase has its own seconds per step: steps of two phases may differ by a factor of a hundred. A row of
    evaluation is assumed to take as long as the row before it. The other work of a task (growing modules, encoding for
    frozen towers, merging) is assumed to take as long as in the task before it.

    Args:
        sizes: relative number of steps of each task (`sizes_of`).
        now: the clock, in seconds.
        rows: the number of rows after row 0, if there are others than one per task.
    """

    def __init__(self, sizes: Sequence[float], now: Now = time.monotonic, rows: int | None = None) -> None:
        self._sizes, self._now, self._rows_left = list(sizes), now, rows
        self._paces: dict[str, Pace] = {}
        self._phases: list[tuple[str, int]] = []
        self._task, self._position = -1, (0, 0)
        self._since: float | None = None
        self._latest: float | None = None
        self._other_work = 0.0
        self._learning = False
        self._row_began: float | None = None
        self._row: float | None = None
        self._images = Pace(now)
        self._images_left = 0

    # -- a task -----------------------------------------------------------------------------------------------

    def begin_task(self, task: int, phases: Sequence[tuple[str, int]], resumed: bool = False) -> None:
        """Begin to learn a task.

        Args:
            task: its number, from 0.
            phases: name and number of steps of each phase.
            resumed: whether an earlier session, whose time is unknown, learned a part of it.
        """
        self._task, self._phases, self._position = task, list(phases), (0, 0)
        self._since, self._learning = (None if resumed else self._now()), True

    def step(self, phase: int, done: int) -> None:
        """Record that `done` steps of a phase (by its index) are done."""
        if phase < len(self._phases):
            if phase != self._position[0]:
                self._pace(self._position[0]).pause()
            self._position = (phase, done)
            self._pace(phase).mark(done)
            self._latest = self._pace(phase).seconds or self._latest

    def _pace(self, phase: int) -> Pace:
        return self._paces.setdefault(self._phases[phase][0], Pace(self._now))

    def step_seconds(self) -> float | None:
        """Return the seconds of a step of the current phase; `None` until they are measured."""
        return self._pace(self._position[0]).seconds if self._phases else None

    def task_left(self) -> float | None:
        """Return the seconds of the remaining steps of the task; `None` until a step is measured."""
        at, done = self._position
        left = [(name, steps) for name, steps in self._phases[at + 1 :]]
        here = self._phases[at : at + 1]
        return self._seconds_of([*((name, max(0, steps - done)) for name, steps in here), *left])

    def _seconds_of(self, phases: Sequence[tuple[str, int]]) -> float | None:
        """Return the seconds of steps; a phase that was not measured yet counts like the last measured one."""
        total = 0.0
        for name, steps in phases:
            pace = self._paces.get(name)
            seconds = self._latest if pace is None or pace.seconds is None else pace.seconds
            if seconds is None and steps:
                return None
            total += steps * (seconds or 0.0)
        return total

    def end_task(self) -> None:
        """End the task."""
        self._learning = False
        known = self._seconds_of(self._phases)
        if self._since is not None and known is not None:
            self._other_work = max(0.0, self._now() - self._since - known)
        for pace in self._paces.values():
            pace.pause()
        if self._phases:
            self._position = (len(self._phases) - 1, self._phases[-1][1])

    def _other_work_left(self) -> float:
        """Return the remaining seconds of the task's work besides steps."""
        known, left = self._seconds_of(self._phases), self.task_left()
        if self._since is None or known is None or left is None:
            return 0.0
        return max(0.0, self._other_work - max(0.0, self._now() - self._since - (known - left)))

    # -- a row of evaluation ----------------------------------------------------------------------------------

    def use_earlier_rows(self, rows: int, seconds: float) -> None:
        """Use the time of rows in earlier sessions until one is measured in this session."""
        self._row = seconds / rows if rows else None

    def begin_row(self, task: int) -> None:
        """Begin to measure the row after a task; -1 is the row before the first."""
        self._task = task
        self._row_began, self._images, self._images_left = self._now(), Pace(self._now), 0

    def encoded(self, done: int, total: int) -> tuple[float | None, float | None]:
        """Record how many of the row's images are encoded; return the remaining seconds of the row and of the run."""
        self._images.mark(done)
        self._images_left = total - done
        return self.row_left(), self.run_left()

    def end_row(self) -> None:
        """End the row."""
        if self._row_began is not None:
            self._row = self._now() - self._row_began
            if self._rows_left is not None and self._task >= 0:
                self._rows_left -= 1
        self._row_began = None

    def row_left(self) -> float | None:
        """Return the remaining seconds of the current row; `None` until something is measured."""
        if self._row_began is None:
            return None
        pace = self._images.seconds
        encoding = None if pace is None else pace * self._images_left
        if self._row is None:
            return encoding
        return max(encoding or 0.0, self._row - (self._now() - self._row_began))

    # -- the run ----------------------------------------------------------------------------------------------

    def run_left(self) -> float | None:
        """Return the remaining seconds of the run; `None` until a task and a row of evaluation are measured."""
        measuring = self._row_began is not None
        if not (measuring or self._learning):
            return None
        now = self.row_left() if measuring else self.task_left()
        to_come = self._sizes[self._task + 1 :]
        rows = len(to_come) + (not measuring) if self._rows_left is None else self._rows_left - measuring
        one = self._seconds_of(self._phases) if self._phases else None
        if now is None or (rows and self._row is None) or (to_come and one is None):
            return None
        size = self._sizes[self._task] if 0 <= self._task < len(self._sizes) else 1.0
        tasks = sum((one or 0.0) * later / max(1e-9, size) + self._other_work for later in to_come)
        return now + (0.0 if measuring else self._other_work_left()) + tasks + rows * (self._row or 0.0)
