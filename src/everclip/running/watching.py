"""Following the learning of one task for a run: counting, showing, recording, saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from everclip.config import TrainingConfig
from everclip.contracts import Phase, Task
from everclip.learner.following import Cursor
from everclip.running.outlook import Outlook
from everclip.training.budget import phase_steps
from everclip.training.engine import StepLog
from everclip.training.progress import Progress, speed


class Followed(Protocol):
    """What is told of every step: the run."""

    progress: Progress
    outlook: Outlook

    def count(self, log: StepLog) -> bool:
        """Count one step; return whether a checkpoint is due after it."""

    def record(self, task: Task, cursor: Cursor, logs: Sequence[StepLog]) -> None:
        """Write steps to the log and to the trackers."""

    def save(self, cursor: Cursor, optimiser: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Write a checkpoint in the middle of a phase."""


class RunWatcher:
    """Follows the learning of one task for a run: counts, shows, records, saves.

    Args:
        run: is told of every step.
        task: what is learned.
        cursor: where in the task learning stands.
        phases: of the task, in order.
        training: the budget, which decides the steps of each phase.

    Attributes:
        steps: name and steps of each phase, its repeats included.
    """

    def __init__(
        self, run: Followed, task: Task, cursor: Cursor, phases: Sequence[Phase], training: TrainingConfig
    ) -> None:
        self._run, self._task, self._cursor, self._phases = run, task, cursor, phases
        self._once = [phase_steps(phase, training) for phase in phases]
        self.steps = [(p.name, n * p.repeats) for p, n in zip(phases, self._once, strict=True)]

    @property
    def total(self) -> int:
        """Steps of all phases."""
        return sum(steps for _, steps in self.steps)

    @property
    def before(self) -> int:
        """Steps of the phases that are over."""
        return sum(steps for _, steps in self.steps[: self._cursor.phase])

    def inside(self, step: int) -> int:
        """Return how many steps of the present phase are done after `step` steps of its present repeat."""
        at = self._cursor.phase
        return step + (self._cursor.repeat * self._once[at] if at < len(self._once) else 0)

    def after_step(self, log: StepLog) -> bool:
        """Count a step; return whether a checkpoint is due."""
        return self._run.count(log)

    def report(self, logs: Sequence[StepLog]) -> None:
        """Show and record steps."""
        self._run.record(self._task, self._cursor, logs)
        done, outlook = self.inside(logs[-1].step + 1), self._run.outlook
        outlook.step(self._cursor.phase, done)
        self._run.progress.update(
            self.before + done, self._note(logs[-1]), left=outlook.task_left(), run_left=outlook.run_left()
        )

    def _note(self, log: StepLog) -> str:
        """Return the loss if there is one, the speed, and the phase where there are several."""
        at = self._cursor.phase
        phase = self._phases[at] if at < len(self._phases) else None
        trained = phase is None or phase.optimiser is not None
        loss = sum(float(value) for value in log.losses.values())
        parts = [f"loss {loss:.3f}"] if trained else []
        seconds = self._run.outlook.step_seconds()
        parts += [speed(log.samples, seconds)] if seconds is not None else []
        if phase is not None and len(self._phases) > 1:
            parts.append(f"phase {at + 1}/{len(self._phases)} {phase.name}")
        return "  ".join(parts)

    def save(self, cursor: Cursor, optimiser: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Write a checkpoint."""
        self._run.save(cursor, optimiser)
