"""Rates and budgets that differ from task to task, as published settings do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def check_names(per_task: Iterable[str], tasks: Sequence[Task], preset: Iterable[str] = ()) -> None:
    """Refuse settings for a task that a stream does not have.

    Args:
        per_task: the names of all settings.
        tasks: those of the stream.
        preset: names that the method's preset brings: it may list more tasks than a stream has, or others altogether.

    Raises:
        ConfigError: for a name that is no task's.
    """
    names = [task.name for task in tasks]
    wrong = next((name for name in per_task if name not in {*names, *preset}), None)
    if wrong is not None:
        raise ConfigError(
            f"method.per_task: {wrong!r} is no task of this stream.{did_you_mean(wrong, names)}"
        )
