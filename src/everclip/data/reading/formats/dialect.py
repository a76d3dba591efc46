"""Detect the dialect of a text table: the separator of its cells, and whether it has a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

from everclip.data.reading.columns import is_known_name
from everclip.data.reading.formats.json_forms import names_a_picture
from everclip.data.reading.settings import Reading

SEPARATORS = ",;\t|"
_LONG = 100_000  # characters; nothing is guessed from longer lines
_EXCEL = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)
_NUMBERED_CAPTION = re.compile(r"(.+\.[A-Za-z]{3,4})#\d+")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


@dataclass(frozen=True)
class Dialect:
    """The dialect of a table.

    Attributes:
        separator: between cells.
        header: whether the first line names the columns.
        skipped: lines before the first record (Excel's `sep=;`).
        notes: lines for people.
    """

    separator: str
    header: bool
    skipped: int = 0
    notes: tuple[str, ...] = ()


def dialect_of(name: str, lines: Sequence[str], reading: Reading, usual: str) -> Dialect:
    """Detect the dialect of a table.

    Args:
        name: of the file, for messages.
        lines: its first lines.
        reading: what the user says.
        usual: the separator that the file's ending implies.
    """
    if lines and len(lines[0]) > _LONG:
        return Dialect(reading.separator or usual, reading.header is not False)
    lines = [line for line in lines if len(line) <= _LONG]
    skipped, notes = 0, []
    found = _EXCEL.fullmatch(lines[0]) if lines else None
    if found is not None:
        skipped, lines = 1, lines[1:]
    if reading.separator is not None:
        separator = reading.separator
    elif found is not None:
        separator = found.group(1)
        notes.append(f"{name}: its first line says that cells are separated by {_shown(separator)}")
    else:
        separator = _separator(lines, usual)
        if separator != usual:
            notes.append(f"{name}: cells are separated by {_shown(separator)}")
    header = reading.header
    if header is None:
        first = next(iter(_parsed(lines[:1], separator)), [])
        cell = next((cell for cell in first if is_picture_like(cell)), None)
        header = cell is None
        if cell is not None:
            notes.append(
                f"{name}: no line of column names: the first line is a row ({cell.strip()[:60]!r}), the columns "
                "are called by their numbers (data.header=true if they are names)"
            )
    return Dialect(separator, header, skipped, tuple(notes))


def without_number(cell: str) -> str:
    """Return the image's name in Flickr8k's `name.jpg#0`."""
    found = _NUMBERED_CAPTION.fullmatch(cell)
    return cell if found is None else found.group(1)


def is_picture_like(cell: str) -> bool:
    """Whether a cell names an image: by the ending of a path, or as a URL."""
    cell = cell.strip()
    return names_a_picture(without_number(cell)) or _URL.fullmatch(cell) is not None


def _shown(separator: str) -> str:
    return "a tab" if separator == "\t" else repr(separator)


def _separator(lines: Sequence[str], usual: str) -> str:
    """Return the separator that gives the first lines equal numbers of cells and known column names."""

    def quality(separator: str) -> tuple[bool, bool, int, float, bool, int]:
        rows = [row for row in _parsed(lines, separator) if row]
        width = len(rows[0]) if rows else 0
        alike = sum(len(row) == width for row in rows[1:]) / (len(rows) - 1) if len(rows) > 1 else 1.0
        known = sum(map(is_known_name, rows[0])) if width > 1 else 0
        return width > 1 and alike >= 0.5, width > 1, known, alike, separator == usual, width

    best = max(SEPARATORS, key=quality)
    return best if quality(best)[1] else usual


def _parsed(lines: Sequence[str], separator: str) -> list[list[str]]:
    rows: list[list[str]] = []
    try:
        for row in csv.reader(lines, delimiter=separator, skipinitialspace=True):
            rows.append(row)  # noqa: PERF402  # rows before an error are kept
    except csv.Error:
        pass
    return rows
