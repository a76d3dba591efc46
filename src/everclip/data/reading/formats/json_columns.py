"""Read rows in the forms of pandas' `to_json` (columns of values, rows by key, `split`), and single rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from everclip.data.reading.columns import is_known_name
from everclip.data.reading.formats.json_stream import values
from everclip.errors import DataError


def rows_of_object(path: Path, encoding: str) -> list[Any]:
    """Return the rows of the top-level object of a file; none if it is too large or has another form.

    Args:
        path: the file; it has no array of objects.
        encoding: of the file.

    Raises:
        DataError: for columns of different lengths.
    """
    try:
        found = next(values(path, encoding), None)
    except DataError:
        return []
    return list(_rows(found, path)) if isinstance(found, dict) else []


def _rows(found: dict[str, Any], path: Path) -> Iterator[Any]:
    names, data = found.get("columns"), found.get("data")
    if isinstance(names, list) and isinstance(data, list):  # orient="split"
        cells = [row for row in data if isinstance(row, list) and len(row) == len(names)]
        if len(cells) == len(data):
            yield from (dict(zip(map(str, names), row, strict=True)) for row in cells)
        return
    if not any(map(is_known_name, found)):
        held = [row for row in found.values() if isinstance(row, dict) and any(map(is_known_name, row))]
        if held and len(held) == len(found):  # orient="index"
            yield from held
        return
    lists = [value for value in found.values() if isinstance(value, list)]
    objects = [value for value in found.values() if isinstance(value, dict)]
    if len(lists) == len(found):  # columns of values
        if len({len(value) for value in lists}) > 1:
            lengths = ", ".join(f"{name!r} {len(value):,}" for name, value in found.items())
            raise DataError(f"{path}: the columns have different lengths ({lengths}).")
        yield from (dict(zip(found, row, strict=True)) for row in zip(*lists, strict=True))
    elif len(objects) == len(found) and all(value.keys() == objects[0].keys() for value in objects):
        # orient="columns": what to_json writes by default
        yield from ({name: value[key] for name, value in found.items()} for key in objects[0])
    else:
        yield found  # one row
