"""Format numbers for readers: shares as percent, differences as points, null as words."""

from __future__ import annotations

from collections.abc import Sequence

NOT_DEFINED = "not defined"
MINUS = "\u2212"
_SPACE = "\u00a0"  # a number and its unit stay on one line


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with a real minus sign, or `not defined`."""
    if value is None:
        return NOT_DEFINED
    text = f"{abs(value):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) != 0 else text


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share in [0, 1] as `46.2 %`."""
    return NOT_DEFINED if value is None else f"{number(100 * value, digits)}{_SPACE}%"


def plain_percent(value: float | None, digits: int = 1) -> str:
    """Return a share in [0, 1] as `46.2`, for tables whose heading names the unit."""
    return number(None if value is None else 100 * value, digits)


def points(value: float | None, digits: int = 1) -> str:
    """Return a difference of shares as signed percentage points, `+12.0`."""
    text = plain_percent(value, digits)
    return f"+{text}" if value is not None and value > 0 and float(text) != 0 else text


def span(low: float | None, high: float | None, digits: int = 0) -> str:
    """Return an interval of shares as `44–48` (`−3 to 1` with a negative end), or an empty text."""
    if low is None or high is None:
        return ""
    joiner = " to " if low < 0 or high < 0 else "\u2013"
    return f"{plain_percent(low, digits)}{joiner}{plain_percent(high, digits)}"


def listed(names: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def seconds(value: float | None) -> str:
    """Return a duration as `8.1 s`, `4 min 10 s` or `2 h 05 min`."""
    if value is None:
        return NOT_DEFINED
    if value < 60:
        return f"{value:.1f}{_SPACE}s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}{_SPACE}min {whole % 60:02d}{_SPACE}s"
    return f"{whole // 3600}{_SPACE}h {whole % 3600 // 60:02d}{_SPACE}min"


def count(value: float) -> str:
    """Return a whole number with thousands separators, any other number with four significant digits."""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,.4g}"


def size(value: float) -> str:
    """Return a number of bytes as `9.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f}{_SPACE}B" if unit == "B" else f"{value:.1f}{_SPACE}{unit}"
        value /= 1000
    return f"{value:.1f}{_SPACE}TB"
