"""Find the columns of images, texts and classes by the content of their cells, in a table without column names."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import pyarrow as pa

from everclip.data.reading.blanks import trimmed
from everclip.data.reading.formats.dialect import is_picture_like
from everclip.data.reading.formats.raw import Raw

_SAMPLE = 1000
_MOST = 0.9
_FEW = 6  # with fewer rows, each may have a class of its own
_LEAST_EACH = 3  # average rows per text, from which texts are classes
_MOST_CLASSES = 2000
_NUMBERS = re.compile(r"[-+.,;:/\d\seE]+")


def columns_by_content(raw: Raw, names: dict[str, str], user_columns: Mapping[str, str]) -> list[str]:
    """Find columns by their cells, in a table without column names, and add them to `names`.

    Args:
        raw: the rows.
        names: canonical names to columns so far; added to.
        user_columns: canonical names to columns, as the user says; these are not guessed.

    Returns:
        One line per guess, for people.
    """
    lines: list[str] = []
    if not raw.headless:
        return lines
    if "image" not in names and "image" not in user_columns and (found := picture_column(raw.columns, names)):
        names["image"] = found
        lines.append(f"image = column {found!r}, whose cells name images")
    texts = {"caption", "class_name", "class_key"}
    if "image" not in names or texts & (set(names) | set(user_columns)):
        return lines
    several = text_columns(raw, names)
    caption = several[0] if several else None
    if caption is not None and not (repeated := _repeated(raw.columns.column(caption))):
        names["caption"] = caption
        lines.append(f"caption = column {caption!r}, whose cells hold several words")
    elif (label := caption or _label_column(raw.columns, set(names.values()))) is not None:
        names["class_name"] = label
        why = f"whose texts repeat: {repeated}" if caption else "whose cells hold a number or a word each"
        lines.append(f"class_name = column {label!r}, {why} (captions: data.columns.caption={label})")
    return lines


def picture_column(columns: pa.Table, names: Mapping[str, str]) -> str | None:
    """Return the column whose cells name images, if exactly one does."""
    return _only(columns, set(names.values()), 0)


def text_columns(raw: Raw, names: Mapping[str, str]) -> list[str]:
    """Return the columns of a headless table whose cells hold several words."""
    taken = {found for wanted, found in names.items() if wanted != "caption"}
    return _of_kind(raw.columns, taken, 1) if raw.headless else []


def _only(columns: pa.Table, taken: Container[str], kind: int) -> str | None:
    """Return the column whose cells are images (0) or texts (1), if exactly one is."""
    found = _of_kind(columns, taken, kind)
    return found[0] if len(found) == 1 else None


def _of_kind(columns: pa.Table, taken: Container[str], kind: int) -> list[str]:
    return [
        name
        for name in columns.column_names
        if name not in taken and pa.types.is_string(columns.schema.field(name).type)
        if _is_of_kind(columns.column(name), kind)
    ]


def _is_of_kind(column: pa.ChunkedArray, kind: int) -> bool:
    step = max(1, len(column) // _SAMPLE)
    cells = [v for v in column.take(pa.array(range(0, len(column), step), pa.int64())).to_pylist() if v]
    fitting = sum(is_picture_like(v) if kind == 0 else _has_words(v) for v in cells)
    return bool(cells) and fitting >= (_MOST if kind == 0 else 0.5) * len(cells)


def _has_words(cell: str) -> bool:
    """Whether a cell holds several words; numbers alone (coordinates, several classes) do not count."""
    return len(cell.split()) > 1 and _NUMBERS.fullmatch(cell) is None


def _repeated(column: pa.ChunkedArray) -> str:
    """Return the number of different texts if each is used by several rows, as classes are; else an empty text."""
    cells = [v for v in column.to_pylist() if v]
    distinct = len(set(cells))
    few = distinct <= _MOST_CLASSES and _LEAST_EACH * distinct <= len(cells)
    return f"{distinct:,} in {len(cells):,} rows" if few else ""


def _label_column(columns: pa.Table, taken: Container[str]) -> str | None:
    """Return the one column whose cells are labels: one number or word each, some equal, but not all.

    Words that are all different may be ids.
    """
    found = []
    for name in columns.column_names:
        if name in taken or not pa.types.is_string(columns.schema.field(name).type):
            continue
        cells = [trimmed(v) for v in columns.column(name).to_pylist() if v]
        words = bool(cells) and all(cell and len(cell.split()) == 1 for cell in cells)
        labels = all(cell.isdecimal() for cell in cells) or not any(map(_NUMBERS.fullmatch, cells))
        if words and labels and len(set(cells)) > 1 and (len(set(cells)) < len(cells) or len(cells) < _FEW):
            found.append(name)
    return found[0] if len(found) == 1 else None
