"""Read CSV and TSV: every cell is text, only the empty cell is missing, and a broken row costs only itself.

Read with the standard library: pandas and Arrow, which `datasets` uses, reject the whole file for one bad row, and
read words such as `NA` as missing values and `007` as a number.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pyarrow as pa

from everclip.data.reading.blanks import trimmed
from everclip.data.reading.columns import is_caption_name, is_known_name
from everclip.data.reading.formats.dialect import Dialect, dialect_of
from everclip.data.reading.formats.raw import Raw, require_few
from everclip.data.reading.formats.records import MAX_CELL, Lines, PathLines, Records, path_and_text
from everclip.data.reading.formats.text_encoding import TextEncoding
from everclip.data.reading.formats.text_file import content_ending, is_text, open_text, text_encoding
from everclip.data.reading.quarantine import Entry
from everclip.data.reading.settings import PLAIN, Reading
from everclip.errors import DataError

MAX_LINE = 16 * 1024 * 1024
"""Limit of characters in a line; the rest counts as another line."""

_BLOCK = 65_536
_LOOKED_AT = 30  # lines, to detect the dialect


def read_text_table(path: Path, reading: Reading = PLAIN) -> Raw:
    """Read a `.csv`, `.tsv` or text file of separated cells.

    Args:
        path: the file.
        reading: encoding, separator and header as the user says; others are detected.

    Raises:
        DataError: for a header that is missing, cannot be decoded or names a column twice; for too many open quotes.
    """
    csv.field_size_limit(MAX_CELL)
    encoding = text_encoding(path, reading.encoding)
    with open_text(path, encoding.name) as file:
        lines = Lines(iter(lambda: file.readline(MAX_LINE), ""))
        usual = "\t" if content_ending(path) in (".tsv", ".token") else ","
        ahead = lines.peek(_LOOKED_AT, MAX_CELL)
        records: Records | PathLines
        if content_ending(path) in (".txt", ".lst", ".list") and _is_path_list(ahead, reading):
            note = (
                f"{path.name}: each line is read as a path, a blank and a text (data.separator=... to change)"
            )
            dialect, records, header = Dialect(" ", False, notes=(note,)), PathLines(lines), ["1", "2"]
        else:
            dialect = dialect_of(path.name, ahead, reading, usual)
            for _ in range(dialect.skipped):
                next(lines)
            records = Records(path, lines, dialect.separator)
            header = _header(path, records, dialect, encoding)
            records.width = len(header)
        columns, numbers, broken = _rows(path, header, records, encoding)
    notes = [encoding.note] if encoding.note else []
    notes += dialect.notes
    if records.literal_quotes:
        notes.append(
            f'{path.name}: quotes (") of {records.literal_quotes:,} lines are plain text: they do not close'
        )
    return Raw(
        path.name,
        columns,
        numbers,
        broken,
        root=path.parent,
        notes=notes,
        textual=True,
        headless=not dialect.header,
    )


def _is_path_list(lines: list[str], reading: Reading) -> bool:
    """Whether every line is an image's path, a blank and a text."""
    is_set = reading.separator not in (None, " ") or reading.header is True
    held = [line for line in lines if line.strip()]
    return not is_set and bool(held) and all(path_and_text(line) for line in held)


def _header(path: Path, records: Records, dialect: Dialect, encoding: TextEncoding) -> list[str]:
    """Return the column names: from the first line, or numbers from 1 without a header."""
    kind = content_ending(path)[1:]
    if not dialect.header:
        (first,) = records.lines.peek() or [""]
        width = len(next(csv.reader([first], delimiter=dialect.separator), []))
        names = [str(i + 1) for i in range(width)]
    else:
        found = next(iter(records), None)
        names = [] if found is None or isinstance(found[1], str) else found[1]
        if not any(map(trimmed, names)):
            why = f" ({found[1]})" if found is not None and isinstance(found[1], str) else ""
            raise DataError(f"{path}: not a readable {kind} file: the first line names no columns{why}.")
    if not all(map(is_text, names)) or "\0" in "".join(names):
        raise DataError(
            f"{path}: not a readable {kind} file: its first line is {encoding.remedy or 'not UTF-8 text'}. Save it as "
            "UTF-8, or say its encoding with data.encoding=NAME."
        )
    names = [trimmed(name) or f"column {i + 1}" for i, name in enumerate(names)]
    require_few(names, str(path))
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1 and is_known_name(name) and not is_caption_name(name):
            raise DataError(
                f"{path}: the column {name!r} stands in the first line more than once; rename one."
            )
        if seen[name] > 1:
            names[i] = f"{name} ({seen[name]})"
    if len(set(names)) < len(names):
        raise DataError(f"{path}: columns of one name stand in the first line; rename them.")
    return names


def _rows(
    path: Path, header: list[str], records: Records | PathLines, encoding: TextEncoding
) -> tuple[pa.Table, list[int], list[Entry]]:
    schema = pa.schema([(name, pa.string()) for name in header])
    tables, numbers, broken = [schema.empty_table()], [], []
    cells: list[list[str | None]] = [[] for _ in header]
    row = 0
    for line, record in records:
        row += 1
        if not isinstance(record, str) and len(record) > len(header) and not any(record[len(header) :]):
            del record[len(header) :]  # separators at the line's end
        problem = _problem(record, len(header), encoding)
        if problem is None and row > 1 and list(map(trimmed, record)) == header:
            problem = (
                "bad-row",
                "the line repeats the names of the columns, as if files were joined; remove it",
            )
        if problem is not None:
            broken.append(Entry(row, f"{path.name}, row {row} (line {line})", *problem))
            continue
        for column, cell in zip(cells, record, strict=True):
            # Programs that print bars between cells put blanks beside them.
            column.append((cell.strip() if records.separator == "|" else cell) or None)
        numbers.append(row)
        if len(cells[0]) == _BLOCK:
            tables.append(pa.table([pa.array(c, pa.string()) for c in cells], schema=schema))
            cells = [[] for _ in header]
    tables.append(pa.table([pa.array(c, pa.string()) for c in cells], schema=schema))
    return pa.concat_tables(tables), numbers, broken


def _problem(record: list[str] | str, width: int, encoding: TextEncoding) -> tuple[str, str] | None:
    if isinstance(record, str):
        return "bad-row", record
    if len(record) > width:
        return (
            "bad-row",
            f'{len(record)} cells, expected {width}; quote cells that hold the separator ("a, b")',
        )
    if len(record) < width:
        return "bad-row", f"{len(record)} {'cell' if len(record) == 1 else 'cells'}, expected {width}"
    if not all(map(is_text, record)):
        return "bad-utf8", encoding.remedy or "not UTF-8 text"
    return None
