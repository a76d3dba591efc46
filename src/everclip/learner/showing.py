"""Shows the progress of `Learner.learn` where no run does."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from everclip.config import TrainingConfig
from everclip.contracts import Phase, Task
from everclip.training.budget import phase_steps
from everclip.training.progress import Progress
from everclip.training.watching import StepLog, Watcher


class Shown(Watcher):
    """Follows a task and shows steps, loss and the time left on standard error.

    Args:
        task: what is learned.
        phases: of it.
        training: the budget.
        progress: where it is shown.
    """

    def __init__(
        self, task: Task, phases: Sequence[Phase], training: TrainingConfig, progress: Progress
    ) -> None:
        self._progress, self._done = progress, 0
        self._total = sum(phase_steps(phase, training) * phase.repeats for phase in phases)
        progress.start(f"learn {task.name}", self._total)

    def after_step(self, log: StepLog) -> bool:
        """Count a step; no checkpoint is ever due."""
        self._done += 1
        return False

    def report(self, logs: Sequence[StepLog]) -> None:
        """Show the last step."""
        loss = sum(float(value) for value in logs[-1].losses.values())
        self._progress.update(self._done, f"loss {loss:.3f}")
        if self._done >= self._total:
            self._progress.finish()


def shown(task: Task, phases: Sequence[Phase], training: TrainingConfig, show: bool | None) -> Shown | None:
    """Return what shows the progress of a task; `None` where nothing is to be shown.

    Args:
        task: what is learned.
        phases: of it.
        training: the budget.
        show: whether; `None` = where standard error is a terminal.
    """
    wanted = sys.stderr is not None and sys.stderr.isatty() if show is None else show
    return Shown(task, phases, training, Progress()) if wanted else None
