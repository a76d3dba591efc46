"""How a time column is read: as written, in UTC, or as seconds since 1970. Never in the time zone of the machine."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable
from typing import Any

from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.conditions import normalised, require_column, row_of
from everclip.scenarios.spec import Clock

_OFFSET = re.compile(r"\d{4}-\d{2}-\d{2}[T ].*?(Z|[+-]\d{2}(:?\d{2})?)", re.IGNORECASE)
_TIME = re.compile(r"\d{4}(-\d{2}(-\d{2}([T ][\d:.,]+)?)?)?", re.IGNORECASE)
_LATEST = 32503680000  # the year 3000: a larger number of seconds is one of milliseconds
_SECONDS = 4e9  # of the year 2096: if no number of milliseconds is larger, all are numbers of seconds


def clocked(table: Table, column: str, clock: Clock) -> Table:
    """Return a table whose times are ISO text without an offset; rows without a time stay without one.

    Args:
        table: the rows.
        column: the time column.
        clock: how it is read; `written` changes nothing.

    Raises:
        DataError: for a missing column, or a value that is no such time; names the row. For `unix-ms`, if the numbers
            are seconds.
    """
    if clock == "written":
        return table
    require_column(table, column, f"clock: {clock}")
    convert = _READERS[clock]
    times: list[str | None] = []
    for position, value in enumerate(table.column(column)):
        value = normalised(value)
        try:
            times.append(None if value is None else convert(value))
        except ValueError as error:
            raise DataError(
                f"{row_of(table, position)}: {column}: {error} (scenario.clock: {clock})."
            ) from error
    if clock == "unix-ms":
        _require_milliseconds(table, column)
    return table.with_column(column, times)


def _require_milliseconds(table: Table, column: str) -> None:
    given = [value for value in map(normalised, table.column(column)) if value is not None]
    if given and all(abs(float(value)) < _SECONDS for value in given):
        raise DataError(
            f"{table.name}: {column}: as milliseconds, all times lie within 47 days of 1970-01-01 (the first is "
            f"{given[0]!r}), so they seem to count seconds; set clock: unix (scenario.clock: unix-ms)."
        )


def in_utc(value: Any) -> str:
    """Return an ISO time in UTC, without an offset; text without an offset stays as it is.

    Raises:
        ValueError: for a time whose end is neither an offset nor part of a time, or that UTC has outside the years 1 to
            9999.
    """
    text = str(value).strip()
    if not _OFFSET.fullmatch(text):
        if not _TIME.fullmatch(text) and re.match(r"\d{4}-\d{2}-\d{2}[T ]", text):
            raise ValueError(f"{text!r} is no time with an offset such as +02:00 or Z, and none without")
        return text  # without an offset nothing says another zone
    try:
        moment = dt.datetime.fromisoformat(text.upper()).astimezone(dt.UTC)
    except OverflowError as error:
        raise ValueError(f"{text!r} is outside the years 1 to 9999 in UTC") from error
    return moment.replace(tzinfo=None).isoformat()


def _since_1970(value: Any, per_second: int) -> str:
    try:
        seconds = float(value) / per_second
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(value, bool) or not math.isfinite(seconds):
        raise ValueError(f"{value!r} is not a number of seconds since 1970")
    if abs(seconds) >= _LATEST:
        hint = "; if it counts milliseconds, set clock: unix-ms" if per_second == 1 else ""
        raise ValueError(f"{value!r} is after the year 3000{hint}")
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)
    return moment.replace(microsecond=0).isoformat()


_READERS: dict[str, Callable[[Any], str]] = {
    "utc": in_utc,
    "unix": lambda value: _since_1970(value, 1),
    "unix-ms": lambda value: _since_1970(value, 1000),
}
