"""Number tasks: give a task without a number the next one, and refuse a number that was used before."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from everclip.contracts import UNNUMBERED, Task
from everclip.data.table import Table
from everclip.errors import ConfigError


def require_task(value: object) -> Task:
    """Return the argument of `Learner.learn` if it is a task.

    Raises:
        ConfigError: if it is not; names `make_task`.
    """
    if isinstance(value, Task):
        return value
    raise ConfigError(
        f"learn: expected a task, found {type(value).__name__}. Make a task of your data first: "
        "learner.learn(everclip.make_task(data))."
    )


def numbered(task: Task, index: int) -> Task:
    """Give a task the number `index`, unless it already has a number."""
    if task.index != UNNUMBERED:
        return task
    name = task.name or f"task {index}"

    def renamed(table: Table) -> Table:
        return table if task.name else table.renamed(name)

    return replace(
        task,
        index=index,
        name=name,
        train=renamed(task.train),
        val=None if task.val is None else renamed(task.val),
        classes=None if task.classes is None else tuple(replace(e, tasks=(index,)) for e in task.classes),
    )


def require_new(task: Task, learned: Collection[int]) -> None:
    """Refuse a task whose number was learned already: replay and results identify tasks by number.

    Raises:
        ConfigError: if a task of this number was learned already.
    """
    again = set(task.covers or (task.index,)) & set(learned)
    if again:
        raise ConfigError(
            f"learn: task {min(again)} ({task.name!r}) was learned already; the next one is number "
            f"{max(learned) + 1}."
        )
