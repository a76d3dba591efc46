"""Read JSON lines, one object per line; a broken line costs only itself.

Read with the standard library: Arrow, which `datasets` uses, rejects the whole file for one bad line or for a column
with values of several types.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from everclip.data.reading.formats.raw import MAX_COLUMNS, Raw, table_of
from everclip.data.reading.formats.text_file import is_text, open_text, text_encoding
from everclip.data.reading.quarantine import Entry
from everclip.data.reading.settings import PLAIN, Reading
from everclip.errors import DataError

MAX_LINE = 16 * 1024 * 1024
"""Characters of one line."""

_MAX_DEPTH = 16


class NoObjectsError(DataError):
    """No line of a file holds an object."""


def read_json_lines(path: Path, reading: Reading = PLAIN) -> Raw:
    """Read a file with one object per line.

    Raises:
        NoObjectsError: if no line holds an object.
    """
    rows: list[dict[str, Any]] = []
    numbers, broken, number = [], [], 0
    names: dict[str, None] = {}
    commas = 0
    encoding = text_encoding(path, reading.encoding)
    with open_text(path, encoding.name) as file:
        for line in _lines(file):
            if line.strip() in ("", "[", "]", ","):  # lines of an array with one object per line
                continue
            number += 1
            bare = line.rstrip().removesuffix(",")
            commas += bare != line.rstrip()
            found = _row(bare, encoding.remedy)
            if isinstance(found, tuple) and not line.endswith("\n"):
                found = found[0], f"{found[1]}; the file ends in this line: is it cut short?"
            if isinstance(found, dict):
                rows.append(found)
                numbers.append(number)
                names.update(dict.fromkeys(found))
            else:
                broken.append(Entry(number, f"{path.name}, row {number}", *found))
    if not rows:
        why = f" (row 1: {broken[0].detail})" if broken else ""
        raise NoObjectsError(f"{path}: not a readable jsonl file: no line of it holds a JSON object{why}.")
    notes = [encoding.note] if encoding.note else []
    if commas:
        notes.append(f"{path.name}: commas at the ends of {commas:,} lines are ignored")
    columns, odd = table_of(rows, list(names))
    return Raw(path.name, columns, numbers, broken, root=path.parent, notes=notes, odd=odd)


def _lines(file: TextIO) -> Iterator[str]:
    """Yield the lines; replace a line that is too long by an invalid one."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while line and not line.endswith("\n"):
                line = file.readline(MAX_LINE)
            line = "{"
        yield line


def _row(line: str, remedy: str) -> dict[str, Any] | tuple[str, str]:
    """Return the object that a line holds, or (reason, detail)."""
    if not is_text(line):
        return "bad-utf8", remedy or "not UTF-8 text"
    try:
        return checked(json.loads(line))
    except (ValueError, RecursionError) as error:
        if line.lstrip().startswith("{'"):
            return "bad-row", "an object as Python prints it, with single quotes; write it by json.dumps"
        return "bad-row", f"no valid JSON ({error})"


def parsed(line: bytes) -> dict[str, Any] | tuple[str, str]:
    """Return the object that a line holds, or (reason, detail)."""
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return "bad-utf8", f"byte {error.start} is not UTF-8"
    except (ValueError, RecursionError) as error:
        return "bad-row", f"no valid JSON ({error})"
    return checked(found)


def checked(found: Any) -> dict[str, Any] | tuple[str, str]:
    """Return an object if it can be a row, else (reason, detail)."""
    if not isinstance(found, dict):
        return "bad-row", f"JSON of type {type(found).__name__}, expected an object"
    if len(found) > MAX_COLUMNS:
        return "bad-row", f"{len(found):,} keys; at most {MAX_COLUMNS:,} are read"
    if _is_deep(found):
        return "bad-row", f"lists or objects inside each other more than {_MAX_DEPTH} deep"
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "bad-utf8", "half of a surrogate pair"
    return found


def _is_deep(found: dict[str, Any]) -> bool:
    """Whether a value is nested deeper than Arrow's nested types can safely be handled."""
    level: list[Any] = [found]
    for _ in range(_MAX_DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return False
    return True
