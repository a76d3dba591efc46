"""Read the values of a table of questions about several images; a wrong one is named and refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from everclip.errors import DataError


def one_value(where: str, values: Sequence[Any], default: Any = None) -> Any:
    """Return the value that the rows of a question share; empty cells do not count.

    Args:
        where: the place, for messages.
        values: of each row.
        default: if all cells are empty.

    Raises:
        DataError: if two rows have different values.
    """
    held = [value for value in values if value is not None]
    for value in held:
        if value != held[0] and repr(value) != repr(held[0]):  # NaN is unequal to itself
            raise DataError(f"{where} is {held[0]!r:.60} and {value!r:.60} in rows of one question.")
    return held[0] if held else default


def whole_number(where: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return a whole number, also of text such as "3" (a CSV file has nothing else) or of 3.0.

    Raises:
        DataError: for another value, or one outside of `least` (default: 0 with `most`) to `most`.
    """
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    lowest = 0 if least is None and most is not None else least
    outside = (lowest is not None and number < lowest) or (most is not None and number > most)
    if not number.is_integer() or outside:
        span = "" if lowest is None else f" from {lowest}" if most is None else f" from {lowest} to {most}"
        raise DataError(f"{where} is {value!r:.60}; expected a whole number{span}.")
    return int(number)


def texts_in(where: str, value: Any) -> tuple[str, ...]:
    """Return the texts of a list.

    Raises:
        DataError: if it is no list of texts.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{where} is {value!r:.60}; expected a list of texts.")
    return tuple(value)


def numbers(where: str, value: Any) -> tuple[float, ...]:
    """Return the numbers of a list.

    Raises:
        DataError: if it is no list of finite numbers.
    """
    held = value if isinstance(value, list | tuple) else [None]
    if not all(
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        for number in held
    ):
        raise DataError(f"{where} is {value!r:.60}; expected a list of numbers.")
    return tuple(map(float, held))
