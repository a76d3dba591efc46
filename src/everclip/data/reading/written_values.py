"""Interpret values as programs print them: `b'cat'`, `tensor(3)`, `np.str_('cat')`, Excel's `="cat"` and `#N/A`."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from everclip.data.reading.formats.text_file import is_text
from everclip.data.table import replaced

_LONGEST = 4000
_BYTES = re.compile(r"b'.*'|b\".*\"", re.DOTALL)
_CALL = re.compile(
    r"(?:np\.|numpy\.|torch\.|tf\.)?(?:tensor|Tensor|array|u?int(?:8|16|32|64)|float(?:16|32|64)|str_|bool_)"
    r"\((.+?)(?:,\s*(?:dtype|device|shape)=[^()]*(?:\([^()]*\))?)*,?\s*\)",
    re.DOTALL,
)
_FORMULA = re.compile(r'="((?:[^"]|"")*)"')
_ERRORS = re.compile(r"#(?:N/A|REF!|VALUE!|NAME\?|DIV/0!|NULL!|NUM!|SPILL!|CALC!)", re.IGNORECASE)
_READ = ("caption", "class_name", "class_key")


def interpreted(columns: pa.Table, name: str) -> tuple[pa.Table, list[str], list[tuple[int, str, str]]]:
    """Replace captions and classes that a program printed by their values.

    Args:
        columns: with canonical names.
        name: of the source, for messages.

    Returns:
        The columns, lines for people, and (row, reason, detail) of cells with a spreadsheet error.
    """
    lines: list[str] = []
    problems: list[tuple[int, str, str]] = []
    for column in _READ:
        if column not in columns.column_names or not pa.types.is_string(columns.schema.field(column).type):
            continue
        values = columns.column(column).to_pylist()
        meant = {
            v: found
            for v in dict.fromkeys(values)
            if v is not None and (found := _interpreted(v)) is not None
        }
        if column != "caption":
            meant |= _whole([v for v in dict.fromkeys(values) if v is not None], meant)
        reason = "empty-caption" if column == "caption" else "missing-label"
        wrong = [(i, v) for i, v in enumerate(values) if v is not None and _ERRORS.fullmatch(v.strip())]
        problems += [
            (i, reason, f"the cell holds {v.strip()!r}, an error of a spreadsheet") for i, v in wrong
        ]
        if meant or wrong:
            lines += _lines(values, meant, column, name)
            gone = {i for i, _ in wrong}
            cells = [None if i in gone else meant.get(v, v) for i, v in enumerate(values)]
            columns = replaced(columns, column, pa.array(cells, pa.string()))
    return columns, lines, problems


def _lines(values: list[str | None], meant: Mapping[str, str], column: str, name: str) -> list[str]:
    if not meant:
        return []
    first = next(v for v in values if v in meant)
    count = sum(v in meant for v in values)
    return [
        f"{name}: {count:,} values of {column} are as a program writes them ({str(first)[:60]!r}): read as "
        f"{meant[str(first)][:60]!r}"
    ]


def _interpreted(text: str) -> str | None:
    """Return the value of a text that a program printed, or `None` for other texts."""
    plain = text.strip()
    if not plain or plain[0] not in "b=ntaTuifs" or len(plain) > _LONGEST:
        return None
    formula = _FORMULA.fullmatch(plain)
    if formula is not None:
        return formula.group(1).replace('""', '"')
    value: Any = None
    if _BYTES.fullmatch(plain):
        value = _literal(plain)
        try:
            value = value.decode() if isinstance(value, bytes) else None
        except UnicodeDecodeError:
            return None
    elif (call := _CALL.fullmatch(plain)) is not None:
        inner = call.group(1).strip()
        if inner.startswith("["):
            return inner  # a list; parsed later
        value = _literal(inner)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int | float | bool) and is_text(str(value)) else None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _whole(values: list[str], meant: Mapping[str, str]) -> dict[str, str]:
    """Return whole numbers without the `.0` that missing values gave them, if every class is a number or missing."""
    numbers = [v for v in values if v not in meant and v.strip().lower() not in ("", "nan")]
    if not numbers or not all(re.fullmatch(r"\d+\.0", v.strip()) for v in numbers):
        return {}
    return {v: v.strip()[:-2] for v in numbers}
