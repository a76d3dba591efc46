"""Notes on times that a proposed stream does not use: dates in a column of another name, counts since 1970."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from everclip.data.table import Table
from everclip.scenarios.conditions import normalised

_DAY = re.compile(r"[12]\d{3}-\d{2}-\d{2}([T ].*)?")
_LOOKED_AT = 1000


def notes_on_times(tables: Sequence[Table], document: Mapping[str, Any]) -> list[str]:
    """Return a line per data set whose times make no tasks, with the setting that reads them."""
    if document["kind"] == "time":
        return []
    return [line for table in tables if (line := _note(table)) is not None]


def _note(table: Table) -> str | None:
    if table.has("time"):
        counts = [str(value) for value in _values(table, "time")]
        if counts and all(re.fullmatch(r"\d{9,13}", count) for count in counts):
            clock = "unix-ms" if len(counts[0]) > 10 else "unix"
            return (
                f"{table.name}: column 'time' holds numbers such as {counts[0]}; if they count from 1970, set "
                f"`kind: time`, `every: year` and `clock: {clock}`"
            )
        return None
    dated = [name for name in table.column_names if _holds_dates(_values(table, name))]
    if not dated:
        return None
    return (
        f"{table.name}: column {dated[0]!r} holds dates; columns.time={dated[0]} makes tasks by time of them"
    )


def _holds_dates(values: Iterator[Any]) -> bool:
    first = next(values, None)
    return first is not None and all(
        isinstance(value, str) and _DAY.fullmatch(value) for value in (first, *values)
    )


def _values(table: Table, name: str) -> Iterator[Any]:
    """Yield the values of the first rows that have one."""
    first = table.select(range(min(len(table), _LOOKED_AT)))
    return (value for value in map(normalised, first.column(name)) if value is not None)
