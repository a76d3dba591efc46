"""Conditions on rows: `where` blocks as functions on tables. Times are compared as written."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Any

from everclip.data.table import Table
from everclip.errors import ConfigError, DataError

_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2}([T ].*)?)?)?")


def matcher(where: Mapping[str, Any], key: str = "where") -> Callable[[Table], Table]:
    """Return a function that keeps the rows which satisfy every condition.

    ISO text is compared by prefix, so `{to: 2024-01}` includes 2024-01-31 and, in the column `time`, `2024-03`
    equals every day of that month; whole numbers are compared as numbers, dates of YAML as ISO text.

    Args:
        where: column -> value, list of values, or `{from: a, to: b}`.
        key: name of the block in errors.

    Raises:
        ConfigError: for an invalid condition, or a range that cannot be compared with a value; names the row.
        DataError: for a missing column.
    """
    tests = {column: _condition(column, wanted, f"{key}.{column}") for column, wanted in where.items()}

    def keep(table: Table) -> Table:
        for column, test in tests.items():
            table = table.select(_kept(table, column, test, f"{key}.{column}"))
        return table

    return keep


def _kept(table: Table, column: str, test: Callable[[Any], bool], key: str) -> list[int]:
    positions = []
    for position, value in enumerate(table.column(column)):
        try:
            if test(value):
                positions.append(position)
        except TypeError as error:
            raise ConfigError(f"{key}: {error} ({row_of(table, position)}).") from error
    return positions


def row_of(table: Table, position: int) -> str:
    """Name a row in messages: `shop.csv, row 17, id 3`. Counts usable rows, from 1."""
    return f"{table.name}, row {table.row_key(position)[1] + 1}, id {table.ids[position]}"


def normalised(value: Any) -> Any:
    """Return a value in the form that is compared: dates as ISO text, NaN and blank text as `None`."""
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, str) and not value.strip():
        return None
    if isinstance(value, str) and re.match(r"\d{4}-\d{2}-\d{2} ", value):
        return value.replace(" ", "T", 1)
    return value


def _condition(column: str, wanted: Any, key: str) -> Callable[[Any], bool]:
    if isinstance(wanted, Mapping):
        unknown = set(wanted) - {"from", "to"}
        if unknown:
            raise ConfigError(f"{key}: unknown key {min(map(str, unknown))!r}; expected `from` and `to`.")
        return _range(dict(wanted))
    choices = [normalised(choice) for choice in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    if any(isinstance(choice, Mapping | list | tuple) for choice in choices):
        raise ConfigError(f"{key}: expected a value, a list of values or `from` and `to`; found {wanted!r}.")
    return lambda value: any(
        _equal(normalised(value), choice, by_prefix=column == "time") for choice in choices
    )


def _equal(value: Any, choice: Any, by_prefix: bool) -> bool:
    if value is None or choice is None:
        return value is choice
    if isinstance(value, str) and isinstance(choice, bool):
        return value.lower() == str(choice).lower()
    if isinstance(value, str) != isinstance(choice, str):
        value, choice = str(value), str(choice)  # a CSV holds the text 3 where YAML holds the number
    if by_prefix and isinstance(value, str) and _DATE.fullmatch(value) and _DATE.fullmatch(choice):
        return value == choice or value.startswith((f"{choice}-", f"{choice}T"))
    return bool(value == choice)


def _range(wanted: dict[str, Any]) -> Callable[[Any], bool]:
    low, high = normalised(wanted.get("from")), normalised(wanted.get("to"))

    def within(value: Any) -> bool:
        value = normalised(value)
        if value is None:
            return False
        for bound in (low, high):
            if bound is not None and not _comparable(value, bound):
                raise TypeError(f"the range {wanted} cannot be compared with the column's {value!r}")
        return (low is None or _order(value, low) >= 0) and (high is None or _order(value, high) <= 0)

    return within


def _comparable(value: Any, bound: Any) -> bool:
    if isinstance(value, bool) or isinstance(bound, bool):
        return False
    if isinstance(value, str):
        if isinstance(bound, int):
            return bool(_DATE.fullmatch(value)) or value.isdigit()
        if not isinstance(bound, str):
            return False
        # 2024 is neither before nor after 2024-03: the value is not precise enough.
        vague = bool(_DATE.fullmatch(value)) and bound.startswith(f"{value}-")
        dated = bool(_DATE.fullmatch(bound)) and "-" in bound
        return not vague and (not dated or bool(_DATE.fullmatch(value)))
    if isinstance(value, int | float):
        return isinstance(bound, int | float) or (isinstance(bound, str) and bound.isdigit())
    return False


def _order(value: Any, bound: Any) -> int:
    """Return -1, 0 or 1; text that begins with the bound equals it."""
    if isinstance(value, str) and not isinstance(bound, str):
        if value.isdigit():
            value = int(value)
        else:
            bound = str(bound)
    elif not isinstance(value, str) and isinstance(bound, str):
        bound = int(bound)
    if isinstance(value, str):
        value = value[: len(bound)]
    return int(value > bound) - int(value < bound)


def require_column(table: Table, column: str, why: str) -> None:
    """Raise `DataError` if a table lacks a column."""
    if not table.has(column):
        raise DataError(
            f"{table.name}: no column {column!r} ({why}); columns are {', '.join(table.column_names)}."
        )
