"""Show the progress of `Learner.learn` outside a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from everclip.config import TrainingConfig
from everclip.contracts import Phase, Task
from everclip.training.budget import phase_steps
from everclip.training.progress import Progress
from everclip.training.watching import StepLog, Watcher


class LearnProgress(Watcher):
    """Shows steps, loss and the time left of a task on standard error.

    Args:
        task: the task.
        phases: the phases of the task.
        training: the budget.
        progress: the progress line.
    """

    def __init__(
        self, task: Task, phases: Sequence[Phase], training: TrainingConfig, progress: Progress
    ) -> None:
        self._progress, self._done = progress, 0
        self._total = sum(phase_steps(phase, training) * phase.repeats for phase in phases)
        progress.start(f"learn {task.name}", self._total)

    def after_step(self, log: StepLog) -> bool:
        """Count a step; never ask for a checkpoint."""
        self._done += 1
        return False

    def report(self, logs: Sequence[StepLog]) -> None:
        """Show the last step."""
        loss = sum(float(value) for value in logs[-1].losses.values())
        self._progress.update(self._done, f"loss {loss:.3f}")
        if self._done >= self._total:
            self._progress.finish()


def learn_progress(
    task: Task, phases: Sequence[Phase], training: TrainingConfig, show: bool | None
) -> LearnProgress | None:
    """Return a watcher that shows the progress of a task; `None` if progress is not shown.

    Args:
        task: the task.
        phases: the phases of the task.
        training: the budget.
        show: whether to show progress; `None` means if standard error is a terminal.
    """
    wanted = sys.stderr is not None and sys.stderr.isatty() if show is None else show
    return LearnProgress(task, phases, training, Progress()) if wanted else None
