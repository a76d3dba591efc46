"""Rates and budgets that differ from task to task, as published settings do; names of tasks whatever their case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from everclip.contracts import Phase, Task
from everclip.errors import ConfigError, did_you_mean
from everclip.methods.settings import TaskTraining


def paced(phase: Phase, task: Task, per_task: Mapping[str, TaskTraining]) -> Phase:
    """Return a phase with what `per_task` says about its task; others are returned as they are."""
    key = _key_of(task.name, per_task)
    if key is None:
        return phase
    own = per_task[key]
    steps, epochs = own.steps, own.epochs
    if steps is None and epochs is None:
        steps, epochs = phase.steps, phase.epochs
    return replace(phase, lr=own.lr if own.lr is not None else phase.lr, steps=steps, epochs=epochs)


def _key_of(name: str, per_task: Iterable[str]) -> str | None:
    """Return the name under which settings speak of a task: its own, else one that differs in case alone."""
    keys = list(per_task)
    if name in keys:
        return name
    return next((key for key in keys if key.casefold() == name.casefold()), None)


def unused(per_task: Iterable[str], tasks: Sequence[Task]) -> list[str]:
    """Return the names of settings that no task of a stream has, in any case."""
    keys = list(per_task)
    taken = {_key_of(task.name, keys) for task in tasks}
    return [key for key in keys if key not in taken]


def check_names(per_task: Iterable[str], tasks: Sequence[Task], preset: Iterable[str] = ()) -> None:
    """Refuse settings for a task that a stream does not have, or that could be meant for two.

    Args:
        per_task: the names of all settings.
        tasks: those of the stream.
        preset: names that the method's preset brings: it may list more tasks than a stream has, or others altogether.

    Raises:
        ConfigError: for a name that is no task's, and for names of settings or tasks that differ in case alone and
            leave open which is meant.
    """
    keys, brought = list(per_task), set(preset)
    names = [task.name for task in tasks]
    wrong = next((name for name in unused(keys, tasks) if name not in brought), None)
    if wrong is not None and not _alike(wrong, keys):
        raise ConfigError(
            f"method.per_task: {wrong!r} is no task of this stream.{did_you_mean(wrong, names)}"
        )
    for key in keys:
        other = next((k for k in _alike(key, keys) if not {key, k} <= set(names)), None)
        if other is not None:
            raise ConfigError(
                f"method.per_task: {key!r} and {other!r} differ in case alone; leave one out (if the preset brought "
                "one, write the name as it does)."
            )
        served = sorted({name for name in names if _key_of(name, keys) == key})
        if len(served) > 1:
            raise ConfigError(
                f"method.per_task: {key!r} fits the tasks {' and '.join(map(repr, served))}, which differ in case "
                "alone; give each its own."
            )


def _alike(name: str, others: Iterable[str]) -> list[str]:
    """Return those that differ from a name in case alone."""
    return [other for other in others if other != name and other.casefold() == name.casefold()]
