"""Rates and budgets that differ from task to task, as published settings do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from everclip.contracts import Phase, Task
from everclip.errors import ConfigError, did_you_mean
from everclip.methods.settings import TaskTraining


def paced(phase: Phase, task: Task, per_task: Mapping[str, TaskTraining]) -> Phase:
    """Return a phase with what `per_task` says about its task; others are returned as they are."""
    own = per_task.get(task.name)
    if own is None:
        return phase
    steps, epochs = own.steps, own.epochs
    if steps is None and epochs is None:
        steps, epochs = phase.steps, phase.epochs
    return replace(phase, lr=own.lr if own.lr is not None else phase.lr, steps=steps, epochs=epochs)


def check_names(per_task: Mapping[str, TaskTraining], tasks: Sequence[Task]) -> None:
    """Refuse settings that are for other tasks altogether.

    A preset may list more tasks than a stream has; one of them should be there.

    Raises:
        ConfigError: if no task has any of the names.
    """
    names = [task.name for task in tasks]
    if per_task and not set(per_task) & set(names):
        wrong = next(iter(per_task))
        raise ConfigError(f"method.per_task: {wrong!r} is no task of this stream.{did_you_mean(wrong, names)}")
