"""The tables of an index in LanceDB. Every change makes a new version of a table; the state says which ones hold.

So a change of several tables is one rename of the state's file: versions that a killed process left behind are never
read, and the next change goes back behind them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from everclip.data.sampling.order import generator
from everclip.errors import CheckpointError, ConfigError
from everclip.search.metadata import ARROW
from everclip.search.records import Column, Storage

ITEMS = "items"
ITEM_FIELDS = (
    pa.field("id", pa.string()),
    pa.field("path", pa.string()),
    pa.field("offset", pa.int64()),
    pa.field("size", pa.int64()),
    pa.field("bytes", pa.large_binary()),
    pa.field("rendering", pa.string()),
    pa.field("sha256", pa.string()),
)
"""An item: where its image lies (a file, a place in an archive, or its bytes), and the hash of the content."""

AT_ONCE = 500
"""Ids in one condition."""

PASS = 4096
"""Rows that a pass over a table reads at a time."""

KEPT = timedelta(hours=1)
"""Old versions of a table stay so long, for processes that read them."""

HELD = "held"
"""The tag of the version of a table that a change began from: the library never cleans a version with a tag."""

_NEVER = timedelta(days=40_000)


def lancedb() -> Any:
    """Return the module.

    Raises:
        ConfigError: if it is not installed.
    """
    os.environ.setdefault("LANCEDB_LOG", "error")  # it warns of every table that it creates
    try:
        import lancedb
    except ImportError as error:
        raise ConfigError(
            "search needs LanceDB, which is not installed: pip install 'everclip[search]'"
        ) from error
    return lancedb


def connect(folder: Path) -> Any:
    """Open the database of an index."""
    return lancedb().connect(str(folder / "tables"))


def names(database: Any) -> list[str]:
    """Return the names of all tables."""
    return list(database.list_tables(limit=10_000).tables)


def at_version(database: Any, name: str, version: int) -> Any:
    """Open a table as it was at a version, for reading.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    try:
        table = database.open_table(name)
        table.checkout(version)
        return table
    except (ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"index table {name}, version {version}: cannot be opened ({message_of(error)}). Another process "
            "may have tidied it just now: repeat the command. If that does not help, index the images again."
        ) from error


def message_of(error: BaseException) -> str:
    """Return an error of the library in one line, without the place in its source."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "os error 28" in text:
        return "the disk is full"
    return re.sub(r",? /[^ ,]*\.rs:\d+:\d+", "", text)[:300]


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn the library's errors while a table is read into one that names it.

    Raises:
        CheckpointError: if a file of the table is missing or damaged.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise CheckpointError(
            f"index table {name}: damaged ({message_of(error)}). If repeating the command does not "
            "help, remove the folder `index` of the store and index the images again."
        ) from error


def to_change(database: Any, name: str, version: int) -> Any:
    """Open a table for writing, with the content of a version, whatever a killed process wrote later."""
    table = at_version(database, name, version)
    table.checkout_latest()
    if table.version != version:
        table.checkout(version)
        table.restore()
    (table.tags.update if HELD in table.tags.list() else table.tags.create)(HELD, version)
    return table


def vector_schema(width: int, storage: Storage, columns: Sequence[Column]) -> pa.Schema:
    """Return the schema of a table of vectors."""
    number = pa.float32() if storage == "float32" else pa.float16()
    fields = [
        pa.field("id", pa.string()),
        pa.field("vector", pa.list_(number, width)),
        pa.field("how", pa.string()),
        pa.field("sha256", pa.string()),
    ]
    return pa.schema([*fields, *metadata_fields(columns)])


def metadata_fields(columns: Sequence[Column], start: int = 0) -> list[pa.Field]:
    """Return the fields of columns of metadata, the first of which has the number `start`."""
    return [pa.field(f"m{i}", ARROW[column.kind]) for i, column in enumerate(columns, start)]


def vectors_array(vectors: NDArray[Any], storage: Storage) -> pa.Array:
    """Return vectors `(N, D)` as an Arrow array."""
    kept = np.ascontiguousarray(vectors, np.float32 if storage == "float32" else np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(kept.reshape(-1)), vectors.shape[1])


def numpy_of(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return stored vectors as float32 `(N, D)`."""
    width = column.type.list_size
    parts = [
        np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, width)
        for chunk in column.chunks
    ]
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)


def rows_with(table: Any, ids: Sequence[str], select: Sequence[str] | None = None) -> pa.Table:
    """Return the rows with any of some ids."""
    with reading(table.name):
        parts = [
            _selected(table.search().where(condition), select).limit(None).to_arrow()
            for condition in _among(ids)
        ]
        return pa.concat_tables(parts) if parts else _selected(table.search(), select).limit(0).to_arrow()


def all_rows(table: Any, select: Sequence[str]) -> pa.Table:
    """Return some columns of all rows."""
    with reading(table.name):
        return _selected(table.search(), select).limit(None).to_arrow()


def _selected(query: Any, select: Sequence[str] | None) -> Any:
    return query if select is None else query.select(list(select))


def without(table: Any, ids: Sequence[str]) -> None:
    """Delete the rows with any of some ids."""
    for condition in _among(ids):
        table.delete(condition)


def _among(ids: Sequence[str]) -> Iterable[Any]:
    from lancedb.expr import col, lit

    for start in range(0, len(ids), AT_ONCE):
        yield col("id").isin([lit(i) for i in ids[start : start + AT_ONCE]])


def compact(table: Any) -> None:
    """Join the small parts that many additions leave, and add new vectors to an approximate index. Cleans nothing."""
    table.optimize(cleanup_older_than=_NEVER)


def clean(table: Any) -> None:
    """Remove old versions of a table that was opened for a change and not changed yet."""
    try:
        table.optimize(cleanup_older_than=KEPT)
    except RuntimeError as error:
        if "tagged version" not in str(error):
            raise  # else it made a new version, so that the one that holds is old: the next call cleans


def make_ann(table: Any, kind: str, partitions: int) -> None:
    """Build the approximate index of a table's vectors."""
    from lancedb.index import IvfHnswSq

    assert kind == "IVF_HNSW_SQ"
    table.create_index(
        "vector", config=IvfHnswSq(distance_type="dot", num_partitions=partitions), replace=True
    )


def taken(table: Any, positions: Sequence[int], select: Sequence[str]) -> pa.Table:
    """Return some columns of the rows at positions."""
    with reading(table.name):
        return table.take_offsets(list(positions)).select(list(select)).to_arrow()


def sample_ids(table: Any, count: int) -> list[str]:
    """Return the ids of some rows, the same ones each time."""
    rows: int = table.count_rows()
    chosen = generator("search queries", rows).permutation(rows)[:count]
    found: list[str] = taken(table, sorted(chosen.tolist()), ["id"]).column("id").to_pylist()
    return found


def vectors_of(table: Any, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Return id -> vector `(D,)` of the ids that a table of vectors holds."""
    rows = rows_with(table, ids, ["id", "vector"])
    return dict(zip(rows.column("id").to_pylist(), numpy_of(rows.column("vector")), strict=True))


def nearest_of_many(table: Any, queries: NDArray[np.float32], top: int) -> list[list[str]]:
    """Return the ids of the nearest vectors of each query, exactly, in one pass over the table.

    Args:
        table: of vectors.
        queries: unit vectors `(Q, D)`.
        top: number of ids, at most.
    """
    best = np.full((len(queries), 0), 0, np.float32)
    rows = np.full((len(queries), 0), 0, np.int64)
    ids: list[pa.Array] = []
    seen = 0
    for batch in table.search().select(["id", "vector"]).limit(None).to_batches(PASS):
        part = pa.Table.from_batches([batch])
        scores = queries @ numpy_of(part.column("vector")).T
        ids.append(batch.column("id"))
        both = np.concatenate([best, scores], axis=1)
        places = np.concatenate(
            [rows, np.broadcast_to(np.arange(seen, seen + len(part)), scores.shape)], axis=1
        )
        order = np.argsort(-both, axis=1, kind="stable")[:, :top]
        best, rows = np.take_along_axis(both, order, axis=1), np.take_along_axis(places, order, axis=1)
        seen += len(part)
    names = pa.chunked_array(ids, pa.string())
    return [names.take(pa.array(found)).to_pylist() for found in rows]


def metadata_of(rows: Any) -> list[str]:
    """Return the names of the stored columns of metadata of a table or schema of Arrow."""
    return [
        name
        for name in (rows.names if isinstance(rows, pa.Schema) else rows.column_names)
        if name.startswith("m")
    ]
