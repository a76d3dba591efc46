"""Captions as tables write them: several as one list in a cell; marks of web pages and words for missing values."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pyarrow as pa

from everclip.data.readers.text_file import is_text
from everclip.data.table import replaced

_LONGEST = 100_000
_MARKS = re.compile(
    r"&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|amp|lt|gt|quot|apos|nbsp);|</?(?:b|i|p|br|em|strong|span|div)\s*/?>"
)
_MISSING = frozenset(("nan", "none", "null", "na", "n/a", "<na>", "nil", "undefined"))


def unpacked(columns: pa.Table, name: str) -> tuple[pa.Table, list[str]]:
    """Turn captions that are lists written as text (`["a", "b"]`, `['a', 'b']`) into lists.

    Args:
        columns: with canonical names.
        name: of the source, for messages.

    Returns:
        The columns, and lines for people.
    """
    if "caption" not in columns.column_names or not pa.types.is_string(columns.schema.field("caption").type):
        return columns, []
    values = columns.column("caption").to_pylist()
    lists = [_parsed(v) if v is not None and _is_list(v) else None for v in values]
    count = sum(found is not None for found in lists)
    if not count:
        return columns, []
    every = [
        v if v is None else [v] if found is None else found for v, found in zip(values, lists, strict=True)
    ]
    example = next(v for v, found in zip(values, lists, strict=True) if found is not None)
    line = f"{name}: {count:,} captions are lists written as text ({example[:60]!r}): each text in them is a caption"
    return replaced(columns, "caption", pa.array(every, pa.list_(pa.string()))), [line]


def _is_list(text: str) -> bool:
    """Whether a text begins and ends as a list of quoted texts does."""
    if len(text) > _LONGEST:
        return False
    plain = text.strip()
    if not (plain.startswith("[") and plain.endswith("]")):
        return False
    inner = plain[1:-1].strip().removesuffix(",").rstrip()
    return len(inner) > 1 and inner[0] in "\"'" and inner[-1] == inner[0]


def _parsed(text: str) -> list[str] | None:
    """Return the texts of a list that is written as JSON or as Python writes it."""
    found: Any = None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    texts = isinstance(found, list) and all(isinstance(v, str) and is_text(v) for v in found)
    return found if texts else None


def caption_notes(columns: pa.Table, name: str) -> list[str]:
    """Return lines about captions that are read as they stand, but look like a slip of a program.

    Args:
        columns: with canonical names; captions are text.
        name: of the source, for messages.
    """
    if "caption" not in columns.column_names:
        return []
    values = [v for v in columns.column("caption").to_pylist() if v is not None]
    marked = [v for v in values if ("&" in v or "<" in v) and _MARKS.search(v)]
    words = [v for v in values if v.strip().casefold() in _MISSING]
    lines = []
    if marked:
        lines.append(
            f"{name}: {len(marked):,} captions hold marks of web pages ({marked[0][:60]!r}), read as they stand"
        )
    if words:
        lines.append(
            f"{name}: {len(words):,} captions are the word {words[0].strip()!r}: if it stands for a missing value, "
            "leave the cell empty"
        )
    return lines
