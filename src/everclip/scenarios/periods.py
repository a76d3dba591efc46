"""The year, quarter, month, week or day of a time."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import Any

from everclip.scenarios.conditions import normalised

_ISO = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?(?:[T ].*)?")
_WEEK = re.compile(r"(\d{4})-?W(\d{2})(?:-?\d)?")
_QUARTER = re.compile(r"(\d{4})-?Q([1-4])")
_COUNT = re.compile(r"-?\d{9,}(\.\d+)?")
_NEEDS = {"year": 1, "quarter": 2, "month": 2, "week": 3, "day": 3}
_PARTS = ("year", "month", "day")


def period_of(value: Any, unit: str) -> str | int:
    """Return the name of the period, which also sorts it: `2024`, `2024-Q1`, `2024-03`, `2024-W09` or `2024-03-05`.

    Times count as written: time zones are ignored (`everclip.scenarios.clock` takes them off before, if asked). Weeks
    are those of ISO 8601. With the unit `value` the value itself is the period.

    Raises:
        ValueError: if the value has no such period; says why.
    """
    value = normalised(value)
    if unit == "value":
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{value!r} is neither text nor a whole number")
        return value
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise ValueError(f"{value!r} is not a time")
    named = _named_period(text.strip(), unit)
    if named is not None:
        return named
    match = _ISO.fullmatch(text.strip())
    if match is None:
        count = _COUNT.fullmatch(text.strip())
        raise ValueError(
            f"{value!r} is not an ISO time (2024, 2024-03, 2024-03-05, 2024-03-05T12:00)"
            + (
                "; if it counts from 1970, set clock: unix (seconds) or unix-ms (milliseconds)"
                if count
                else ""
            )
        )
    given = [int(part) for part in match.groups() if part is not None]
    if len(given) < _NEEDS[unit]:
        raise ValueError(f"{value!r} has no {_PARTS[_NEEDS[unit] - 1]}, so its {unit} is unknown")
    date = dt.date(*[*given, 1, 1][:3])  # refuses a month 13
    if unit == "week":
        year, week, _ = date.isocalendar()
        return f"{year:04d}-W{week:02d}"
    if unit == "quarter":
        return f"{date.year:04d}-Q{(date.month + 2) // 3}"
    return date.isoformat()[: {"year": 4, "month": 7, "day": 10}[unit]]


def _named_period(text: str, unit: str) -> str | None:
    """Return the period of a text that names a week or a quarter."""
    if unit in ("week", "year") and (week := _WEEK.fullmatch(text)):
        dt.date.fromisocalendar(int(week[1]), int(week[2]), 1)  # refuses a week 60
        return f"{week[1]}-W{week[2]}" if unit == "week" else week[1]
    if unit in ("quarter", "year") and (quarter := _QUARTER.fullmatch(text)):
        return f"{quarter[1]}-Q{quarter[2]}" if unit == "quarter" else quarter[1]
    return None


def empty_between(names: Sequence[str], unit: str) -> list[str]:
    """Return the periods between the first and the last of some that none of them names, in order of time.

    Args:
        names: names of periods, from `period_of`.
        unit: `year`, `quarter`, `month` or `week`; other units have no such gaps.
    """
    step = _STEPS.get(unit)
    if step is None or len(names) < 2:
        return []
    found, given, last = [], set(names), _first_day(max(names))
    day = _first_day(min(names))
    while day < last:
        name = str(period_of(day, unit))
        if name not in given:
            found.append(name)
        day = _first_day(str(period_of(day + dt.timedelta(days=step), unit)))
    return found


_STEPS = {"year": 366, "quarter": 92, "month": 31, "week": 7}
"""Days from the first day of a period that lie in the next one."""


def _first_day(name: str) -> dt.date:
    """Return the first day of a period."""
    if (week := _WEEK.fullmatch(name)) is not None:
        return dt.date.fromisocalendar(int(week[1]), int(week[2]), 1)
    if (quarter := _QUARTER.fullmatch(name)) is not None:
        return dt.date(int(quarter[1]), 3 * int(quarter[2]) - 2, 1)
    return dt.date(*[*(int(part) for part in name.split("-")), 1, 1][:3])
