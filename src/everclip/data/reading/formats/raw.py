"""The result of every reader: rows as in the source, a name for each row, and the entries that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.reading.formats.cells import Odd, column_of
from everclip.data.reading.quarantine import Entry
from everclip.errors import DataError

IMAGE_ENDINGS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff")
UNREADABLE_ENDINGS = ("heic", "heif", "avif", "svg", "psd", "ico", "jp2", "jxl", "raw", "cr2", "nef", "dng")
"""Image formats that cannot be read: such files are counted as unreadable images, not skipped."""

MAX_COLUMNS = 4096
"""Limit of columns: each costs time and memory, and a hostile row of a few megabytes can name a million."""


@dataclass
class Raw:
    """Rows of one file or folder.

    Attributes:
        name: of the file or folder.
        columns: the rows, with the column names of the source.
        numbers: 1-based number of every row in the source, or `None` if rows have no numbers.
        broken: one entry per row or file that cannot be read.
        root: folder that image paths are relative to, and may not leave.
        known: canonical names to columns, if the format defines them.
        labels: names of rows without numbers, e.g. members of an archive.
        notes: lines for people, shown with the guesses.
        split: the side in the file's or folder's name.
        root_fixed: whether `data.root` does not apply, since the paths are relative to `root`.
        confined: whether image paths must stay below `root`.
        textual: whether every cell is text, so that numbers must be parsed.
        headless: whether the columns have numbers instead of names.
        odd: per text column the positions of values that were not text, with a description.
        flaws: positions of rows that cannot be used, with reason and detail.
        read_beside: names of further files that were read, such as a list of class names.
        unlabelled: the error if labels are needed and the data have none.
        class_in_name: pattern that fits the names of its images, if they seem to contain classes.
    """

    name: str
    columns: pa.Table
    numbers: Sequence[int] | None = None
    broken: list[Entry] = field(default_factory=list)
    root: Path | None = None
    known: dict[str, str] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)
    split: str | None = None
    root_fixed: bool = False
    confined: bool = True
    textual: bool = False
    headless: bool = False
    odd: dict[str, Odd] = field(default_factory=dict)
    flaws: dict[int, tuple[str, str]] = field(default_factory=dict)
    read_beside: tuple[str, ...] = ()
    unlabelled: str = ""
    class_in_name: str = ""

    def with_columns(self, cells: Mapping[str, Sequence[str | None]]) -> Raw:
        """Return the rows with text columns added or replaced; their names are canonical names."""
        columns = self.columns
        for name, values in cells.items():
            column = pa.array(values, pa.string())
            at = columns.column_names.index(name) if name in columns.column_names else None
            columns = (
                columns.append_column(name, column) if at is None else columns.set_column(at, name, column)
            )
        return replace(self, columns=columns, known={**self.known, **{name: name for name in cells}})

    def take(self, rows: Sequence[int]) -> Raw:
        """Return some of the rows, in the given order; each keeps its number."""
        place = {row: i for i, row in enumerate(rows)}
        return replace(
            self,
            columns=self.columns.take(pa.array(rows, pa.int64())),
            numbers=[self.number(i) or i + 1 for i in rows],
            labels=None if self.labels is None else [self.labels[i] for i in rows],
            flaws={place[row]: flaw for row, flaw in self.flaws.items() if row in place},
            odd={
                name: {place[row]: kind for row, kind in odd.items() if row in place}
                for name, odd in self.odd.items()
            },
        )

    def row_name(self, position: int) -> str:
        """Return the name of the row at `position`, for people."""
        if self.labels is not None:
            return f"{self.name}, {self.labels[position]}"
        return f"{self.name}, row {self.number(position)}"

    def number(self, position: int) -> int | None:
        """Return the 1-based number of the row at `position`, or `None`."""
        if self.labels is not None and self.numbers is None:
            return None
        return position + 1 if self.numbers is None else int(self.numbers[position])


def require_few(names: Sequence[str], where: str = "rows") -> None:
    """Refuse more than `MAX_COLUMNS` columns.

    Raises:
        DataError: with their number.
    """
    if len(names) > MAX_COLUMNS:
        raise DataError(
            f"{where}: {len(names):,} columns ({names[0][:40]!r}, {names[1][:40]!r}...); at most {MAX_COLUMNS:,} are "
            "read. Leave out those that are no text, class, time or condition."
        )


def table_of(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> tuple[pa.Table, dict[str, Odd]]:
    """Return rows as Arrow columns, and per text column the values that were not text.

    Raises:
        DataError: if there are more than `MAX_COLUMNS`.
    """
    require_few(names)
    kept = list(rows)
    columns: dict[str, pa.Array] = {}
    odd: dict[str, Odd] = {}
    for name in names:
        columns[name], found = column_of([row.get(name) for row in kept])
        if found:
            odd[name] = found
    table = pa.table(columns) if columns else pa.table({"": pa.nulls(len(kept))}).select([])
    return table, odd


def picture_list(
    path: Path, columns: pa.Table, broken: list[Entry], images_root: Path | None, notes: list[str]
) -> Raw:
    """Return the rows of a file about images beside it; its columns have canonical names.

    Args:
        path: the file.
        columns: `image` and further columns.
        broken: rows that are set aside.
        images_root: folder of the images; default: that of the file.
        notes: lines for people.
    """
    return Raw(
        path.name,
        columns,
        None,
        broken,
        root=images_root or path.parent,
        root_fixed=images_root is not None,
        known={name: name for name in columns.column_names},
        labels=columns.column("image").to_pylist(),
        notes=notes,
    )
