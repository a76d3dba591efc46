"""An immutable, ordered set of samples: Arrow columns plus a selection of rows.

Canonical columns are `id`, `image_id`, `image` (encoded bytes in memory or on disk), `caption` or `class_name` (with
`class_key`), `language`, `time`, and optionally `keywords` and `concept` (samples of one concept are positives of
each other).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from everclip.data.pictures.location import LOCATION, image_bytes, is_location, locations
from everclip.data.pictures.remote import remote_file
from everclip.data.pictures.rendering import COLUMN, DEFAULT, Rendering
from everclip.errors import DataError, did_you_mean
from everclip.urls import is_remote

Rows = npt.NDArray[np.int64]
_SOURCES = itertools.count()  # one number per set of columns or images in this process


class Table:
    """A view of Arrow columns; neither selecting rows nor adding columns copies an image.

    Args:
        columns: all samples; needs the columns `id` and `image` (bytes, or `everclip.data.pictures.location.PLACE`).
        rows: positions of this view's rows, in order; `None`: all.
        name: shown in errors.
        pictures: where the images lie, if `image` holds positions among them; several rows can share one image.
    """

    def __init__(
        self,
        columns: pa.Table,
        rows: Rows | None = None,
        name: str = "data",
        pictures: ImageLocations | None = None,
        source: int | None = None,
    ) -> None:
        if pictures is None:
            columns, pictures = _without_images(columns)
        self._columns, self._pictures = columns, pictures
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

    def row_key(self, position: int) -> tuple[int, int]:
        """Return a key of a row: equal in all views of the same columns, different in all other tables."""
        return self._source, int(self._rows[position])

    def image_key(self, position: int) -> tuple[int, int]:
        """Return a key of a sample's image for caches; rows and tables that share the image have the same key."""
        return self._pictures.source, self._picture(position)

    def content(self, position: int) -> str:
        """Return the SHA-256 of a sample's image in hexadecimal, as it was when the data were read."""
        known = self._pictures.locations[self._picture(position)]["sha256"].as_py()
        return (known or hashlib.sha256(self.value("image", position) or b"").digest()).hex()

    def contents(self) -> list[str]:
        """Return a text per row made of the image's hash and its rendering; equal texts mean equal pixels."""
        known: dict[int, str] = {}
        found = []
        rendered = self.column(COLUMN) if self.has(COLUMN) else [None] * len(self)
        for position, picture in enumerate(
            self._columns.column("image").take(pa.array(self._rows)).to_pylist()
        ):
            if picture not in known:
                known[picture] = f"{self.content(position)} {rendered[position] or ''}"
            found.append(known[picture])
        return found

    def place(self, position: int) -> dict[str, Any]:
        """Return where a sample's image lies, of type `everclip.data.pictures.location.LOCATION`."""
        found: dict[str, Any] = self._pictures.locations[self._picture(position)].as_py()
        return found

    def origin(self, position: int) -> str:
        """Return the path of a sample's image file; an empty text if the image is in memory or in an archive."""
        place = self._pictures.locations[self._picture(position)]
        return str(place["path"].as_py() or "") if place["offset"].as_py() is None else ""

    @property
    def positions(self) -> pa.Table:
        """All columns of all rows; `image` holds positions among `places`."""
        return self._columns

    @property
    def rows(self) -> Rows:
        """The rows of this view among `positions`."""
        return self._rows

    @property
    def places(self) -> pa.ChunkedArray:
        """Where the images lie."""
        return self._pictures.locations

    @cached_property
    def is_remote(self) -> bool:
        """Whether images lie in shards behind URLs."""
        return self._pictures.is_remote

    def fetch(self, position: int) -> None:
        """Bring the blocks of a sample's image into the cache, if it lies far away."""
        place = self._pictures.locations[self._picture(position)]
        path = place["path"].as_py()
        if path is not None and is_remote(path):
            remote_file(path).fetch_range(place["offset"].as_py(), place["size"].as_py())

    def _picture(self, position: int) -> int:
        found = self._columns.column("image")[int(self._rows[position])].as_py()
        return int(found)

    def identities(self) -> list[str]:
        """Return the `image_id` of each row, or its id if it has none.

        Rows that share an `image_id` are captions of one image.
        """
        if not self.has("image_id"):
            return list(self.ids)
        return [
            own if shared is None else str(shared)
            for own, shared in zip(self.ids, self.column("image_id"), strict=True)
        ]

    def identity(self, position: int) -> str:
        """Return the `image_id` of a row, or its id if it has none."""
        shared = self.value("image_id", position) if self.has("image_id") else None
        return self.ids[position] if shared is None else str(shared)

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
        if name == "image":
            return [self.value(name, position) for position in range(len(self))]
        values: list[Any] = self._columns.column(name).take(pa.array(self._rows)).to_pylist()
        return values

    def value(self, name: str, position: int) -> Any:
        """Return one value; `position` counts within this view. An image is read from memory or disk."""
        if name == "image":
            return image_bytes(self._pictures.locations[self._picture(position)].as_py(), self.name)
        return self._columns.column(name)[int(self._rows[position])].as_py()

    def encoded(self, position: int) -> tuple[bytes, str] | tuple[bytes, str, Rendering]:
        """Return the arguments of `images.decode` for an image: bytes, name and, if set, rendering."""
        data, name = self.value("image", position), f"{self.name}, id {self.ids[position]}"
        rendering = Rendering.parse(self.value(COLUMN, position)) if self.has(COLUMN) else DEFAULT
        return (data, name) if rendering == DEFAULT else (data, name, rendering)

    @cached_property
    def ids(self) -> list[str]:
        """The sample ids in row order."""
        return [str(value) for value in self.column("id")]

    def select(self, positions: Sequence[int] | Rows) -> Table:
        """Return the view of the given positions, in the given order."""
        chosen = np.asarray(positions, dtype=np.int64)
        return Table(self._columns, self._rows[chosen], self.name, self._pictures, self._source)

    def where(self, column: str, keep: Callable[[Any], bool]) -> Table:
        """Return the rows whose value in `column` satisfies `keep`."""
        return self.select([i for i, value in enumerate(self.column(column)) if keep(value)])

    def with_column(self, name: str, values: Iterable[Any], type_: pa.DataType | None = None) -> Table:
        """Return a table of this view's rows with a column added or replaced."""
        columns = replaced(self._columns.take(pa.array(self._rows)), name, pa.array(list(values), type=type_))
        return Table(columns, None, self.name, None if name == "image" else self._pictures)

    def arrow(self) -> pa.Table:
        """Return this view's rows as an Arrow table with the images as bytes, ready to be written to a file."""
        index = self.column_names.index("image")
        columns = self._columns.remove_column(index).take(pa.array(self._rows))
        return columns.add_column(index, "image", pa.array(self.column("image"), pa.binary()))

    def renamed(self, name: str) -> Table:
        """Return the same view under another name."""
        return Table(self._columns, self._rows, name, self._pictures, self._source)

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
            return Table(tables[0]._columns, rows, label, tables[0]._pictures, tables[0]._source)
        # Images are not copied: their locations are concatenated, and the rows' positions shifted.
        sources = list({table._pictures.source: table._pictures for table in tables}.values())
        start = dict(
            zip(
                (pictures.source for pictures in sources),
                np.cumsum([0, *[len(pictures.locations) for pictures in sources]]),
                strict=False,
            )
        )
        parts = []
        for table in tables:
            columns = table._columns.take(pa.array(table._rows))
            at = pc.add(columns.column("image"), int(start[table._pictures.source]))
            parts.append(replaced(columns, "image", at))
        chain = (
            sources[0]
            if len(sources) == 1
            else ImageLocations(pa.chunked_array([c for p in sources for c in p.locations.chunks], LOCATION))
        )
        return Table(pa.concat_tables(parts, promote_options="default"), None, label, chain)

    @cached_property
    def fingerprint(self) -> str:
        """A hash over every column: equal fingerprints mean equal data."""
        digest = hashlib.sha256()
        for column in sorted(self.column_names):
            digest.update(column.encode())
            for data in self._hashed(column):
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        return digest.hexdigest()[:16]

    def _hashed(self, column: str) -> Iterator[bytes]:
        """Yield the bytes of each value of a column that enter the fingerprint; for images their content hash."""
        if column != "image":
            for found in self._columns.column(column).take(pa.array(self._rows)):
                raw = found.as_py()
                yield raw if isinstance(raw, bytes) else repr(raw).encode()
            return
        yield from (bytes.fromhex(self.content(position)) for position in range(len(self)))


class ImageLocations:
    """Locations of images (of type `LOCATION`), with a number that is unique in this process."""

    def __init__(self, locations: pa.ChunkedArray) -> None:
        self.locations = locations
        self.source = next(_SOURCES)

    @cached_property
    def is_remote(self) -> bool:
        """Whether any of them is behind a URL."""
        return any(
            pc.any(pc.match_substring(chunk.field("path"), "://")).as_py() for chunk in self.locations.chunks
        )


def _without_images(columns: pa.Table) -> tuple[pa.Table, ImageLocations]:
    """Separate the images from the columns; `image` then holds each row's position among them."""
    held = columns.column("image")
    if is_location(held.type):
        found = held
    else:
        found = pa.chunked_array([locations(len(c), c.cast(pa.binary())) for c in held.chunks], LOCATION)
    return replaced(columns, "image", pa.array(np.arange(len(held), dtype=np.int64))), ImageLocations(found)


def replaced(columns: pa.Table, name: str, values: Any) -> pa.Table:
    """Return columns with one replaced or added."""
    if name in columns.column_names:
        return columns.set_column(columns.column_names.index(name), name, values)
    return columns.append_column(name, values)
