"""Tasks by time: listed conditions in their order, or one task per period in the data."""

from __future__ import annotations

from typing import Any

from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.conditions import matcher, require_column, row_of
from everclip.scenarios.groups import Group
from everclip.scenarios.periods import period_of
from everclip.scenarios.reading import Reader
from everclip.scenarios.spec import ScenarioSpec
from everclip.scenarios.splits import Parts


def groups(spec: ScenarioSpec, parts: Parts, reader: Reader) -> list[Group]:
    """Return one group per listed task or per period; rows of the base belong to no period."""
    if spec.every is None:
        return [
            Group(task.name, parts.keep(matcher(task.where, f"tasks.{i}.where")), key=f"tasks.{i}")
            for i, task in enumerate(spec.tasks)
        ]
    column = spec.column or "time"
    require_column(parts.train, column, f"tasks by {spec.every}")
    known = None if spec.base is None or spec.base.data is not None else spec.base.where
    later = parts if known is None else parts.keep(lambda table: _rest(table, known))
    of_parts = [
        {} if t is None else _periods(t, column, spec.every) for t in (later.train, later.val, later.test)
    ]
    names = _ordered({name for found in of_parts for name in found}, parts.train, column)
    train, val, test = of_parts
    undated = sum(t.column(column).count(None) for t in (later.train, later.val, later.test) if t is not None)
    if undated:
        reader.notes.append(f"{parts.train.name}: {undated:,} rows without {column!r} belong to no task")
    return [
        Group(
            str(name),
            Parts(
                later.train.select(train.get(name, [])),
                None if later.val is None else later.val.select(val.get(name, [])),
                later.test.select(test.get(name, [])),
            ),
        )
        for name in names
    ]


def _rest(table: Table, where: dict[str, Any]) -> Table:
    known = matcher(where, "base.where")(table)
    taken = {known.row_key(i) for i in range(len(known))}
    return table.select([i for i in range(len(table)) if table.row_key(i) not in taken])


def _periods(table: Table, column: str, unit: str) -> dict[str | int, list[int]]:
    """Return period -> positions."""
    found: dict[str | int, list[int]] = {}
    for position, value in enumerate(table.column(column)):
        if value is None or value != value:
            continue
        try:
            found.setdefault(period_of(value, unit), []).append(position)
        except ValueError as error:
            raise DataError(
                f"{row_of(table, position)}: {column}: {error}. Correct it, choose another `every`, or remove "
                "such rows from the data."
            ) from error
    return found


def _ordered(names: set[str | int], table: Table, column: str) -> list[str | int]:
    if not names:
        raise DataError(
            f"{table.name}: no row after the base has a value in {column!r}, so there are no tasks."
        )
    kinds = {type(name) for name in names}
    if len(kinds) > 1:
        shown = ", ".join(repr(min(n for n in names if type(n) is kind)) for kind in (int, str))
        raise DataError(
            f"{table.name}: {column!r} holds numbers and texts ({shown}), which have no common order."
        )
    return sorted(names)
