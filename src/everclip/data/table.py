"""An immutable, ordered set of samples: Arrow columns plus a selection of rows.

Canonical columns are `id`, `image_id`, `image` (encoded bytes), `caption` or `class_name` (with `class_key`),
`language`, `time`, and optionally `keywords` and `concept` (samples of one concept are positives of each other).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from everclip.errors import DataError, did_you_mean

Rows = npt.NDArray[np.int64]
_SOURCES = itertools.count()  # numbers the sets of columns of this process


class Table:
    """A view of Arrow columns; selecting rows never copies images.

    Args:
        columns: all samples; needs the columns `id` and `image`.
        rows: positions that this view holds, in order; `None` = all.
        name: how errors call it.
    """

    def __init__(
        self, columns: pa.Table, rows: Rows | None = None, name: str = "data", source: int | None = None
    ) -> None:
        self._columns = columns
        self._source = next(_SOURCES) if source is None else source
        self._rows = np.arange(columns.num_rows, dtype=np.int64) if rows is None else rows
        self.name = name

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, {len(self)} rows, columns: {', '.join(self.column_names)})"

    @property
    def column_names(self) -> list[str]:
        """The columns that every row has."""
        return list(self._columns.column_names)

    def place(self, position: int) -> tuple[int, int]:
        """Name a sample for caches: views of the same columns agree, other tables never do, whatever their ids."""
        return self._source, int(self._rows[position])

    def identities(self) -> list[str]:
        """What each row's caption belongs to: its `image_id` if it has one, else its own id.

        Rows that share an `image_id` are captions of one picture.
        """
        if not self.has("image_id"):
            return list(self.ids)
        return [
            own if shared is None else str(shared)
            for own, shared in zip(self.ids, self.column("image_id"), strict=True)
        ]

    def has(self, column: str) -> bool:
        """Whether the column exists."""
        return column in self._columns.column_names

    def column(self, name: str) -> list[Any]:
        """Return one column as Python values, in row order.

        Raises:
            DataError: if there is no such column.
        """
        if name not in self._columns.column_names:
            raise DataError(f"{self.name}: no column {name!r}.{did_you_mean(name, self.column_names)}")
        values: list[Any] = self._columns.column(name).take(pa.array(self._rows)).to_pylist()
        return values

    def value(self, name: str, position: int) -> Any:
        """Return one value; `position` counts within this view."""
        return self._columns.column(name)[int(self._rows[position])].as_py()

    @cached_property
    def ids(self) -> list[str]:
        """The sample ids in row order."""
        return [str(value) for value in self.column("id")]

    def select(self, positions: Sequence[int] | Rows) -> Table:
        """Return the view of the given positions, in the given order."""
        chosen = np.asarray(positions, dtype=np.int64)
        return Table(self._columns, self._rows[chosen], self.name, self._source)

    def where(self, column: str, keep: Callable[[Any], bool]) -> Table:
        """Return the rows whose value in `column` satisfies `keep`."""
        return self.select([i for i, value in enumerate(self.column(column)) if keep(value)])

    def with_column(self, name: str, values: Iterable[Any], type_: pa.DataType | None = None) -> Table:
        """Return a table of this view's rows with a column added or replaced."""
        columns = self._columns.take(pa.array(self._rows))
        array = pa.array(list(values), type=type_)
        if name in columns.column_names:
            columns = columns.set_column(columns.column_names.index(name), name, array)
        else:
            columns = columns.append_column(name, array)
        return Table(columns, name=self.name)

    def arrow(self) -> pa.Table:
        """Return this view's rows as an Arrow table of their own, pictures as bytes: what can be written to a file."""
        columns = self._columns.take(pa.array(self._rows))
        pictures = pa.array(self.column("image"), pa.binary())
        return columns.set_column(columns.column_names.index("image"), "image", pictures)

    def renamed(self, name: str) -> Table:
        """Return the same view under another name."""
        return Table(self._columns, self._rows, name, self._source)

    @staticmethod
    def concat(tables: Sequence[Table], name: str | None = None) -> Table:
        """Join tables row-wise; columns that only some have are filled with null.

        Raises:
            DataError: if there is nothing to join.
        """
        if not tables:
            raise DataError("nothing to join: the list of tables is empty.")
        label = name or tables[0].name
        if all(table._columns is tables[0]._columns for table in tables):
            rows = np.concatenate([table._rows for table in tables])
            return Table(tables[0]._columns, rows, label, tables[0]._source)
        parts = [table._columns.take(pa.array(table._rows)) for table in tables]
        return Table(pa.concat_tables(parts, promote_options="default"), name=label)

    @cached_property
    def fingerprint(self) -> str:
        """A hash over every column: equal fingerprints mean equal data."""
        digest = hashlib.sha256()
        for column in sorted(self.column_names):
            digest.update(column.encode())
            for value in self._columns.column(column).take(pa.array(self._rows)):
                raw = value.as_py()
                data = raw if isinstance(raw, bytes) else repr(raw).encode()
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        return digest.hexdigest()[:16]
