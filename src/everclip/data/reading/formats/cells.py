"""Convert Python values to Arrow columns; their types are checked before anything becomes text."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Odd = dict[int, str]
"""Positions in a text column whose values were not text, with a description of the value."""

_MISSING = ("NAType", "NaTType")  # of pandas, which is not imported for it


def column_of(given: Sequence[Any]) -> tuple[pa.Array, Odd]:
    """Return values as an Arrow array, and the values of a text column that were not text.

    `None`, NaN and pandas' `NA` are missing values. If some values are texts and others lists of texts, all become
    lists. Without a common type all values become text, so that an unused column costs no row; the second result names
    the converted values for columns that are used.
    """
    values = [_plain(value) for value in given]
    kinds = {type(value) for value in values}
    if str in kinds and float in kinds:
        values = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
    if not {str, bytes} <= kinds:
        try:
            return pa.array(values), {}
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            pass
    if all(v is None or isinstance(v, str) or _is_texts(v) for v in values):
        lists = [[v] if isinstance(v, str) else v for v in values]
        return pa.array(lists, pa.list_(pa.string())), {}
    odd = {i: kind for i, v in enumerate(values) if (kind := kind_of(v))}
    return pa.array([_as_text(v) for v in values], pa.string()), odd


def _plain(value: Any) -> Any:
    """Convert scalars and arrays of NumPy and torch, and paths, to plain Python values."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | bytes):
        return value
    if isinstance(value, float):
        return float(value)
    if type(value).__name__ in _MISSING:
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        inner = [
            _plain(v) for v in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)
        ]
        texts = any(isinstance(v, str) for v in inner)
        return [None if texts and isinstance(v, float) and math.isnan(v) else v for v in inner]
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    return value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(v is None or isinstance(v, str) for v in value)


def kind_of(value: Any) -> str:
    """Describe a value that is not text, for people; return an empty text for text and missing values."""
    if value is None or isinstance(value, str):
        return ""
    if isinstance(value, bool):
        return f"the truth value {value}"
    if isinstance(value, int | float):
        return f"the number {_as_text(value)}"
    if isinstance(value, datetime.date | datetime.time):
        return f"the date {value.isoformat()}"
    words: dict[type, str] = {list: "a list", dict: "a mapping", bytes: "bytes"}
    word = words.get(type(value), type(value).__name__)
    return f"{word} {value!r:.60}"


def is_name(kind: str) -> bool:
    """Whether a value of this kind can be a name: a number can be a class."""
    return not kind or kind.startswith("the ")


def _as_text(value: Any) -> str | None:
    """Return a value as text; whole numbers have no `.0`, and dates are ISO text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value)
