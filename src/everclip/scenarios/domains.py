"""Tasks by domain: one task per value of a column; and all rows as a single task."""

from __future__ import annotations

from everclip.errors import DataError
from everclip.scenarios.conditions import matcher
from everclip.scenarios.groups import Group
from everclip.scenarios.ordering import ordered
from everclip.scenarios.reading import Reader
from everclip.scenarios.spec import ScenarioSpec
from everclip.scenarios.splits import Parts


def groups(spec: ScenarioSpec, parts: Parts, reader: Reader) -> list[Group]:
    """Return one group per value of `spec.column`, in `spec.order`."""
    column = str(spec.column)
    values = [str(v) for v in dict.fromkeys(parts.train.column(column)) if v is not None]
    if not values:
        raise DataError(
            f"{parts.train.name}: the column {column!r} holds no values, so there are no domains."
        )
    empty = parts.train.column(column).count(None)
    if empty:
        reader.notes.append(
            f"{parts.train.name}: {empty:,} training rows without {column!r} belong to no task"
        )
    pick = parts.by(column)
    chosen = ordered(values, spec, f"values of {column!r}")
    return [Group(value, pick([value]), key="column") for value in chosen]


def single(spec: ScenarioSpec, parts: Parts, reader: Reader) -> list[Group]:
    """Return all rows, or those that the only entry of `tasks` selects, as one group."""
    if spec.tasks:
        only = spec.tasks[0]
        return [Group(only.name, parts.keep(matcher(only.where, "tasks.0.where")), key="tasks.0")]
    return [Group("all", parts)]
