"""Find the columns of pictures, texts and classes by the content of their cells, in a table without column names."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import pyarrow as pa

from everclip.data.reading.blanks import trimmed
from everclip.data.reading.formats.dialect import is_picture_like
from everclip.data.reading.formats.raw import Raw

_SAMPLE = 1000
_MOST = 0.9
_FEW = 6  # rows that may all have a class of their own
_LEAST_EACH = 3  # rows of one text, on average, so that it is taken for a class
_MOST_CLASSES = 2000
_NUMBERS = re.compile(r"[-+.,;:/\d\seE]+")


def columns_by_content(raw: Raw, names: dict[str, str], given: Mapping[str, str]) -> list[str]:
    """Find columns by their cells, in a table without column names, and add them to `names`.

    Args:
        raw: the rows.
        names: canonical names to columns so far; added to.
        given: columns that the user names; they are not guessed.

    Returns:
        A line per guess, for people.
    """
    lines: list[str] = []
    if not raw.headless:
        return lines
    if "image" not in names and "image" not in given and (found := picture_column(raw.columns, names)):
        names["image"] = found
        lines.append(f"image = column {found!r}, whose cells name pictures")
    texts = {"caption", "class_name", "class_key"}
    if "image" not in names or texts & (set(names) | set(given)):
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
    """Return the one column whose cells name pictures, if there is just one."""
    return _only(columns, set(names.values()), 0)


def text_columns(raw: Raw, names: Mapping[str, str]) -> list[str]:
    """Return the columns of a table without column names whose cells hold several words, the captions' own first."""
    taken = {found for wanted, found in names.items() if wanted != "caption"}
    return _of_kind(raw.columns, taken, 1) if raw.headless else []


def _only(columns: pa.Table, taken: Container[str], kind: int) -> str | None:
    """Return the one column whose cells are pictures (0) or texts (1), if there is just one."""
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
    """Whether a cell holds several words, and not numbers alone: places in a picture, or several classes."""
    return len(cell.split()) > 1 and _NUMBERS.fullmatch(cell) is None


def _repeated(column: pa.ChunkedArray) -> str:
    """Return how many texts are different, if each of them stands in several rows: they are names of classes."""
    cells = [v for v in column.to_pylist() if v]
    distinct = len(set(cells))
    few = distinct <= _MOST_CLASSES and _LEAST_EACH * distinct <= len(cells)
    return f"{distinct:,} in {len(cells):,} rows" if few else ""


def _label_column(columns: pa.Table, taken: Container[str]) -> str | None:
    """Return the one column whose cells are labels: a number or a word each, of which some are equal, not all.

    Words that are all different say nothing: they may as well be ids.
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
