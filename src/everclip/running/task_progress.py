"""The progress within a task, in steps, and its progress line."""

from __future__ import annotations

from collections.abc import Sequence

from everclip.config import TrainingConfig
from everclip.contracts import Phase, Stream
from everclip.running.time_left import TimeLeft
from everclip.training.budget import phase_steps
from everclip.training.progress import Progress, speed
from everclip.training.watching import Cursor, StepLog


class TaskProgress:
    """Shows the progress of one task.

    Args:
        cursor: the position of learning within the task.
        phases: the phases of the task, in order.
        training: its budget decides the steps of each phase.

    Attributes:
        steps: name and steps of each phase, including its repeats.
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
        """Steps of the finished phases."""
        return sum(steps for _, steps in self.steps[: self.cursor.phase])

    def inside(self, step: int) -> int:
        """Return how many steps of the current phase are done after `step` steps of its current repeat."""
        at = self.cursor.phase
        return step + (self.cursor.repeat * self._once[at] if at < len(self._once) else 0)

    @property
    def main(self) -> Stream | None:
        """The stream of the samples of the current phase."""
        phases = self._phases[self.cursor.phase :]
        return phases[0].streams.get("main") if phases else None

    def show(self, log: StepLog, progress: Progress, time_left: TimeLeft) -> None:
        """Show the last step and the time left."""
        done = self.inside(log.step + 1)
        time_left.step(self.cursor.phase, done)
        note = self._note(log, time_left.step_seconds())
        progress.update(self.before + done, note, left=time_left.task_left(), run_left=time_left.run_left())

    def _note(self, log: StepLog, seconds: float | None) -> str:
        """Return the loss if there is one, the speed, and the phase if there are several."""
        at = self.cursor.phase
        phase = self._phases[at] if at < len(self._phases) else None
        trained = phase is None or phase.optimiser is not None
        loss = sum(float(value) for value in log.losses.values())
        parts = [f"loss {loss:.3f}"] if trained else []
        parts += [speed(log.samples, seconds)] if seconds is not None else []
        if phase is not None and len(self._phases) > 1:
            parts.append(f"phase {at + 1}/{len(self._phases)} {phase.name}")
        return "  ".join(parts)
