"""Tasks by domain: one value of a column after another; and all rows as a single task."""

from __future__ import annotations

from typing import Any

from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.base import matcher
from everclip.scenarios.ordering import ordered
from everclip.scenarios.spec import ScenarioSpec


def groups(spec: ScenarioSpec, train: Table, test: Table) -> list[tuple[str, Table, Table, Any]]:
    """Return (name, training rows, test rows, None) per value of `spec.column`, in `spec.order`."""
    column = str(spec.column)
    values = [str(v) for v in dict.fromkeys(train.column(column)) if v is not None]
    if not values:
        raise DataError(f"{train.name}: the column {column!r} holds no values, so there are no domains.")
    chosen = ordered(values, spec, f"values of {column!r}")
    return [(value, _only(train, column, value), _only(test, column, value), None) for value in chosen]


def _only(table: Table, column: str, value: str) -> Table:
    return table.where(column, lambda found: str(found) == value)


def single(spec: ScenarioSpec, train: Table, test: Table) -> list[tuple[str, Table, Table, Any]]:
    """Return everything (or what the only entry of `tasks` selects) as one task."""
    if spec.tasks:
        only = spec.tasks[0]
        keep = matcher(only.where)
        return [(only.name, keep(train), keep(test), None)]
    return [("all", train, test, None)]
