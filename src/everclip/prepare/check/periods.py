"""Count rows per period of time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from everclip.prepare.check.document import Time

_ISO = re.compile(r"\d{4}(-\d{2}(-\d{2}([T ].*)?)?)?")
_WORDED = re.compile(r"\s*\d{1,2}([./-])\d{1,2}\1(\d{4}|\d{2})\b.*")
_MOST = 36
_LENGTHS: tuple[tuple[Literal["day", "month", "year"], int], ...] = (("day", 10), ("month", 7), ("year", 4))


def time_counts(values: Sequence[Any]) -> Time | None:
    """Count rows per year, month or day: the finest unit with at most 36 periods.

    Args:
        values: whole numbers (years, or any other scale) or ISO texts (`2024`, `2024-03`, `2024-03-31T12:00`).

    Returns:
        `None` without values. Other texts are counted value by value.
    """
    given = [value for value in values if value is not None and value != ""]
    if not given:
        return None
    period, labels = _labels(given)
    counts = Counter(labels)
    order = sorted(counts, key=_natural)
    return Time(
        first=order[0],
        last=order[-1],
        period=period,
        counts={label: counts[label] for label in order},
        missing=len(values) - len(given),
    )


def misordered(values: Iterable[Any]) -> str | None:
    """Return the first date that begins with its day or month (`31.12.2024`), since such dates do not sort by time."""
    return next((str(value) for value in values if _WORDED.fullmatch(str(value))), None)


def _labels(given: Sequence[Any]) -> tuple[Literal["day", "month", "year", "value"], list[str]]:
    texts = [str(value) for value in given]
    if not all(_ISO.fullmatch(text) for text in texts):
        return "value", texts
    shortest = min(map(len, texts))
    for period, length in _LENGTHS:
        cut = [text[:length] for text in texts]
        if length <= max(4, shortest) and (len(set(cut)) <= _MOST or period == "year"):
            return period, cut
    return "value", texts


def _natural(label: str) -> tuple[int, float, str]:
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label
