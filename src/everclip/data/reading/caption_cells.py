"""Captions as tables hold them: lists and objects written as text, HTML marks, words for missing values."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pyarrow as pa

from everclip.data.reading.caption_languages import are_languages
from everclip.data.reading.formats.text_file import is_text
from everclip.data.table import replaced

_LONGEST = 100_000
_TEXT_KEYS = ("text", "caption", "raw")
_MARKS = re.compile(
    r"&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|amp|lt|gt|quot|apos|nbsp);|</?(?:b|i|p|br|em|strong|span|div)\s*/?>"
)
_MISSING = frozenset(("nan", "none", "null", "na", "n/a", "<na>", "nil", "undefined"))
_QUOTED = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")
_BETWEEN = re.compile(r"\s*,?\s*")


def with_caption_lists(columns: pa.Table, name: str) -> tuple[pa.Table, list[str]]:
    """Parse captions that are lists written as text (`["a", "b"]`, `['a', 'b']`).

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


def texts_of_objects(columns: pa.Table, name: str) -> tuple[pa.Table, list[str], list[tuple[int, str, str]]]:
    """Parse captions that are objects written as text (`{"en": "a dog"}`, `{'raw': 'a dog'}`); keep their texts.

    Args:
        columns: with canonical names.
        name: of the source, for messages.

    Returns:
        The columns, lines for people, and (row, reason, detail) of objects without a known text field.
    """
    if "caption" not in columns.column_names or not pa.types.is_string(columns.schema.field("caption").type):
        return columns, [], []
    values = columns.column("caption").to_pylist()
    objects = {row: found for row, v in enumerate(values) if v is not None and (found := _object(v))}
    if not objects:
        return columns, [], []
    every: list[list[str] | None] = [None if v is None else [v] for v in values]
    problems = []
    for row, found in objects.items():
        every[row] = _texts_in(found)
        if every[row] is None:
            keys = ", ".join(map(str, found))[:80]
            problems.append(
                (row, "bad-row", f"the caption is an object of {keys}, written as text (expected text)")
            )
    line = (
        f"{name}: {len(objects):,} captions are objects written as text ({values[min(objects)][:60]!r}): their texts "
        "are the captions"
    )
    notes = [line] if len(problems) < len(objects) else []
    return replaced(columns, "caption", pa.array(every, pa.list_(pa.string()))), notes, problems


def _object(text: str) -> dict[Any, Any] | None:
    """Return the object in a text of JSON or Python, or `None`."""
    plain = text.strip()
    quoted = plain[:1] == "{" and plain[-1:] == "}" and plain[1:].lstrip()[:1] in ("'", '"')
    if not quoted or len(text) > _LONGEST:
        return None
    try:
        found: Any = json.loads(plain)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(plain)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return found if isinstance(found, dict) and found else None


def _texts_in(found: dict[Any, Any]) -> list[str] | None:
    """Return the captions of an object: its text field, or its text per language."""
    named = next((found[key] for key in _TEXT_KEYS if key in found), None)
    names = [str(key) for key in found]
    texts = [named] if named is not None else list(found.values()) if are_languages(names) else []
    return texts if texts and all(isinstance(t, str) and is_text(t) for t in texts) else None


def _is_list(text: str) -> bool:
    """Whether a text begins and ends like a list of quoted texts."""
    if len(text) > _LONGEST:
        return False
    plain = text.strip()
    if not (plain.startswith("[") and plain.endswith("]")):
        return False
    inner = plain[1:-1].strip().removesuffix(",").rstrip()
    return len(inner) > 1 and inner[0] in "\"'" and inner[-1] in "\"'"


def _parsed(text: str) -> list[str] | None:
    """Return the texts of a list in JSON or Python syntax."""
    found: Any = None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            parts = _printed(text.strip())
            if parts is not None:
                return parts
            found = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    texts = isinstance(found, list) and all(isinstance(v, str) and is_text(v) for v in found)
    return found if texts else None


def _printed(text: str) -> list[str] | None:
    """Return the texts of a list as NumPy prints it, without commas; Python would read it as one text."""
    texts, place = [], 1
    while (found := _QUOTED.match(text, place)) is not None:
        texts.append(ast.literal_eval(found.group()))
        between = _BETWEEN.match(text, found.end())
        place = found.end() if between is None else between.end()
        if place == len(text) - 1 and text[place] == "]":
            return texts
        if place == found.end():
            break
    return None


def caption_notes(columns: pa.Table, name: str) -> list[str]:
    """Return lines about captions that look like a program's mistake; they are read unchanged.

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
            f"{name}: {len(marked):,} captions hold marks of web pages ({marked[0][:60]!r}); they are read unchanged"
        )
    if words:
        every = sorted({word.strip() for word in words})
        said = f"the word {every[0]!r}" if len(every) == 1 else f"the words {', '.join(map(repr, every[:5]))}"
        lines.append(
            f"{name}: {len(words):,} captions are {said}: if it stands for a missing value, leave the cell empty"
        )
    return lines
