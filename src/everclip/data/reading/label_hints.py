"""Hints for people about columns that may hold captions or classes, if none is known to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from everclip.data.reading.columns import is_known_name, plain_name
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.one_hot import one_hot_columns

_SAMPLE = 1000
_MOST_CLASSES = 2000
_LEAST_EACH = 2
_SEPARATORS = ("|", ";", ",", " ")
_NUMBERS = re.compile(r"[-+.,:\d\seE]+")
_SENTENCE = re.compile(r"\b(?:a|an|the|of|in|on|with|and|is|are|at|to)\b", re.IGNORECASE)


def label_hint(raw: Raw, names: Mapping[str, str]) -> str:
    """Return sentences on columns that may hold captions, classes, several labels or coordinates of objects.

    Args:
        raw: the rows.
        names: canonical names to columns that are known.
    """
    captions: list[str] = []
    classes: list[str] = []
    sentences: list[str] = []
    marks = one_hot_columns(raw, names)
    for field in raw.columns.schema:
        if field.name in names.values() or field.name in marks:
            continue
        cells = [
            v for v in raw.columns.column(field.name).slice(0, _SAMPLE).to_pylist() if v not in (None, "")
        ]
        if not cells:
            continue
        if pa.types.is_nested(field.type):
            sentences += _of_nested(field.name, field.type)
        elif pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            sentence = _of_several(field.name, cells)
            if sentence:
                sentences.append(sentence)
            elif _are_captions(cells):
                captions.append(field.name)
            elif _repeat(cells):
                classes.append(field.name)
        elif pa.types.is_integer(field.type) and _repeat(cells):
            classes.append(field.name)
    return "".join(
        f" {line}" for line in [*sentences, *_of_marks(list(marks)), *_candidates(captions, classes)]
    )


def _candidates(captions: Sequence[str], classes: Sequence[str]) -> list[str]:
    found = []
    if captions:
        shown = ", ".join(map(repr, captions[:3]))
        found.append(f"{shown} may hold captions: {_setting('caption', captions[0])}.")
    if classes:
        shown = ", ".join(map(repr, classes[:4]))
        found.append(f"{shown} may hold classes: {_setting('class_name', classes[0])}.")
    return found


def _setting(wanted: str, column: str) -> str:
    """Return the setting that names a column, quoted for a shell."""
    setting = f"data.columns.{wanted}={column}"
    return setting if re.fullmatch(r"[\w.=-]+", setting) else f'"{setting}"'


def _of_nested(name: str, kind: pa.DataType) -> list[str]:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        if not pa.types.is_struct(kind):
            return []
        fields = ", ".join(kind.field(i).name for i in range(min(kind.num_fields, 5)))
        return [f"{name!r} holds objects of {fields}: write what the image shows into a column of its own."]
    if pa.types.is_string(kind.value_type) and is_known_name(name):
        return [
            f"{name!r} holds lists: everclip learns one class per image; keep one, or make each a "
            f"caption with data.columns.caption={name}."
        ]
    if pa.types.is_struct(kind.value_type):
        fields = ", ".join(kind.value_type.field(i).name for i in range(min(kind.value_type.num_fields, 5)))
        return [
            f"{name!r} holds lists of objects with {fields}: write the text that belongs to the image into a column "
            "`caption`."
        ]
    return [f"{name!r} holds lists: write one class, or a caption, for each image."]


def _of_several(name: str, cells: Sequence[str]) -> str:
    """Return a sentence about a column with several labels or numbers in a cell, or an empty text."""
    if plain_name(name) == "predictionstring" or all(
        re.search(r"\d[\s,;]+[-\d]", cell) and _NUMBERS.fullmatch(cell) for cell in cells
    ):
        return (
            f"The cells of {name!r} hold several numbers ({cells[0][:40]!r}): several classes of one image, or "
            "positions of objects, are not read; write one class, or a caption, for each image."
        )
    separator = _separator(cells)
    if separator is None:
        return ""
    example = next(cell for cell in cells if len(_pieces(cell, separator)) > 1)
    return (
        f"{name!r} holds several labels in a cell ({example[:40]!r}): everclip learns one class per "
        f"image; keep one of them, or learn them as texts with {_setting('caption', name)}."
    )


def _pieces(cell: str, separator: str) -> list[str]:
    return [piece.strip() for piece in cell.split(separator) if piece.strip()]


def _separator(cells: Sequence[str]) -> str | None:
    """Return the separator of labels, if a fifth of the cells hold several labels and the labels repeat."""
    for separator in _SEPARATORS:
        if separator == " " and (
            any(map(_SENTENCE.search, cells)) or max(len(cell.split()) for cell in cells) > 12
        ):
            continue
        pieces = [_pieces(cell, separator) for cell in cells]
        words = [piece for held in pieces for piece in held]
        several = sum(len(held) > 1 for held in pieces)
        again = 3 * len(set(words)) <= len(words)  # labels repeat
        lone = {held[0] for held in pieces if len(held) == 1}
        labels = separator != " " or bool(lone & set(words)) or all(map(str.isdecimal, words))
        if 5 * several >= len(cells) and again and labels:
            return separator
    return None


def _are_captions(cells: Sequence[str]) -> bool:
    return 2 * sum(len(cell.split()) > 2 for cell in cells) >= len(cells) and 2 * len(set(cells)) > len(cells)


def _repeat(cells: Sequence[object]) -> bool:
    distinct = len(set(map(str, cells)))
    return 1 < distinct <= _MOST_CLASSES and _LEAST_EACH * distinct <= len(cells)


def _of_marks(marks: Sequence[str]) -> list[str]:
    """Return a sentence about columns of 0 and 1 that mark several classes per row."""
    if len(marks) < 2:
        return []
    shown = ", ".join(map(repr, marks[:4])) + (f" and {len(marks) - 4} more" if len(marks) > 4 else "")
    return [
        f"{shown} hold 0 and 1, and most rows not just one 1: everclip learns one class per image; write "
        "one class, or a caption that names them, for each image."
    ]
