"""How far a run is inside a task, in steps, and the line that shows it."""

from __future__ import annotations

from collections.abc import Sequence

from everclip.config import TrainingConfig
from everclip.contracts import Phase
from everclip.running.outlook import Outlook
from everclip.training.budget import phase_steps
from everclip.training.progress import Progress, speed
from everclip.training.watching import Cursor, StepLog


class TaskProgress:
    """Shows the steps of one task.

    Args:
        cursor: where in the task learning stands.
        phases: of the task, in order.
        training: the budget, which decides the steps of each phase.

    Attributes:
        steps: name and steps of each phase, its repeats included.
    """

    def __init__(self, cursor: Cursor, phases: Sequence[Phase], training: TrainingConfig) -> None:
        self.cursor, self._phases = cursor, phases
        self._once = [phase_steps(phase, training) for phase in phases]
        self.steps = [(p.name, n * p.repeats) for p, n in zip(phases, self._once, strict=True)]

    @property
    def total(self) -> int:
        """Steps of all phases."""
        return sum(steps for _, steps in self.steps)

    @property
    def before(self) -> int:
        """Steps of the phases that are over."""
        return sum(steps for _, steps in self.steps[: self.cursor.phase])

    def inside(self, step: int) -> int:
        """Return how many steps of the present phase are done after `step` steps of its present repeat."""
        at = self.cursor.phase
        return step + (self.cursor.repeat * self._once[at] if at < len(self._once) else 0)

    def show(self, log: StepLog, progress: Progress, outlook: Outlook) -> None:
        """Show the last step and the time left."""
        done = self.inside(log.step + 1)
        outlook.step(self.cursor.phase, done)
        note = self._note(log, outlook.step_seconds())
        progress.update(self.before + done, note, left=outlook.task_left(), run_left=outlook.run_left())

    def _note(self, log: StepLog, seconds: float | None) -> str:
        """Return the loss if there is one, the speed, and the phase where there are several."""
        at = self.cursor.phase
        phase = self._phases[at] if at < len(self._phases) else None
        trained = phase is None or phase.optimiser is not None
        loss = sum(float(value) for value in log.losses.values())
        parts = [f"loss {loss:.3f}"] if trained else []
        parts += [speed(log.samples, seconds)] if seconds is not None else []
        if phase is not None and len(self._phases) > 1:
            parts.append(f"phase {at + 1}/{len(self._phases)} {phase.name}")
        return "  ".join(parts)
