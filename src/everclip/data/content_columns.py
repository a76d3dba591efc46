"""Find the columns of pictures and of texts by the content of their cells, in a table without column names."""

from __future__ import annotations

from collections.abc import Container, Mapping

import pyarrow as pa

from everclip.data.readers.dialect import is_picture_like
from everclip.data.readers.raw import Raw

_SAMPLE = 1000
_MOST = 0.9


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
    if "image" in names and not texts & (set(names) | set(given)):
        found = _only(raw.columns, set(names.values()), 1)
        if found is not None:
            names["caption"] = found
            lines.append(f"caption = column {found!r}, whose cells hold several words")
    return lines


def picture_column(columns: pa.Table, names: Mapping[str, str]) -> str | None:
    """Return the one column whose cells name pictures, if there is just one."""
    return _only(columns, set(names.values()), 0)


def _only(columns: pa.Table, taken: Container[str], kind: int) -> str | None:
    """Return the one column whose cells are pictures (0) or texts (1), if there is just one."""
    found = [
        name
        for name in columns.column_names
        if name not in taken and pa.types.is_string(columns.schema.field(name).type)
        if _is_of_kind(columns.column(name), kind)
    ]
    return found[0] if len(found) == 1 else None


def _is_of_kind(column: pa.ChunkedArray, kind: int) -> bool:
    step = max(1, len(column) // _SAMPLE)
    cells = [v for v in column.take(pa.array(range(0, len(column), step), pa.int64())).to_pylist() if v]
    fitting = sum(is_picture_like(v) if kind == 0 else len(v.split()) > 1 for v in cells)
    return bool(cells) and fitting >= (_MOST if kind == 0 else 0.5) * len(cells)
