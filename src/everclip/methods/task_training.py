"""Learning rates and budgets of single tasks, as in published settings; the case of task names does not matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from everclip.contracts import Phase, Task
from everclip.errors import ConfigError, did_you_mean
from everclip.methods.settings import TaskTraining


def with_task_training(phase: Phase, task: Task, per_task: Mapping[str, TaskTraining]) -> Phase:
    """Return a phase with the settings of its task in `per_task`; without an entry, the phase itself."""
    key = _key_of(task.name, per_task)
    if key is None:
        return phase
    settings = per_task[key]
    steps, epochs = settings.steps, settings.epochs
    if steps is None and epochs is None:
        steps, epochs = phase.steps, phase.epochs
    lr = settings.lr if settings.lr is not None else phase.lr
    return replace(phase, lr=lr, steps=steps, epochs=epochs)


def _key_of(name: str, per_task: Iterable[str]) -> str | None:
    """Return the key of a task's settings: its exact name, else a name that differs only in case."""
    keys = list(per_task)
    if name in keys:
        return name
    return next((key for key in keys if key.casefold() == name.casefold()), None)


def unused(per_task: Iterable[str], tasks: Sequence[Task]) -> list[str]:
    """Return the keys that do not match any task of a stream."""
    keys = list(per_task)
    used = {_key_of(task.name, keys) for task in tasks}
    return [key for key in keys if key not in used]


def check_names(per_task: Iterable[str], tasks: Sequence[Task], preset: Iterable[str] = ()) -> None:
    """Check that every key names a task of a stream, and only one.

    Args:
        per_task: the keys.
        tasks: the tasks of the stream.
        preset: keys from the method's preset, which may name tasks that the stream does not have.

    Raises:
        ConfigError: for a key that does not name a task, and for keys or tasks that are ambiguous because they differ
            only in case.
    """
    keys, from_preset = list(per_task), set(preset)
    names = [task.name for task in tasks]
    wrong = next((name for name in unused(keys, tasks) if name not in from_preset), None)
    if wrong is not None and not _alike(wrong, keys):
        raise ConfigError(
            f"method.per_task: {wrong!r} is not a task of this stream.{did_you_mean(wrong, names)}"
        )
    for key in keys:
        other = next((k for k in _alike(key, keys) if not {key, k} <= set(names)), None)
        if other is not None:
            raise ConfigError(
                f"method.per_task: {key!r} and {other!r} differ only in case; leave one out (if one comes from the "
                "preset, use its spelling)."
            )
        matching = sorted({name for name in names if _key_of(name, keys) == key})
        if len(matching) > 1:
            raise ConfigError(
                f"method.per_task: {key!r} fits the tasks {' and '.join(map(repr, matching))}, which differ only in "
                "case; give each its own settings."
            )


def _alike(name: str, others: Iterable[str]) -> list[str]:
    """Return the names that differ from a name only in case."""
    return [other for other in others if other != name and other.casefold() == name.casefold()]
