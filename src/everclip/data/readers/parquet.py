"""Parquet: small files in memory, large ones through a memory-mapped Arrow file; row groups are read one by one.

`datasets` reads Parquet as well, but gives up the whole file for one damaged row group; what it writes into the
schema (`ClassLabel` names, `Image`) is read with its own `Features`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from everclip.data.quarantine import Entry
from everclip.data.readers.raw import Raw
from everclip.data.spill import mapped, spilled
from everclip.errors import DataError
from everclip.files import cache_folder

IN_MEMORY = 256 * 1024 * 1024
"""Parquet files up to this size are held in memory."""


def read_parquet(path: Path) -> Raw:
    """Read a `.parquet` file; rows of a damaged row group are set aside.

    Raises:
        DataError: if the file as a whole cannot be read.
    """
    broken: list[Entry] = []
    numbers: list[int] = []
    try:
        with pq.ParquetFile(path, memory_map=False) as file:
            schema = file.schema_arrow
            batches = _batches(path, file, numbers, broken)
            if path.stat().st_size <= IN_MEMORY:
                columns = pa.Table.from_batches(list(batches), schema)
            else:
                columns = _mapped(path, batches, schema, numbers, broken)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}).") from error
    return Raw(path.name, with_class_names(columns), numbers, broken, root=path.parent)


def _batches(
    path: Path, file: pq.ParquetFile, numbers: list[int], broken: list[Entry]
) -> Iterator[pa.RecordBatch]:
    start = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        found: list[pa.RecordBatch] = []
        try:
            table = file.read_row_group(group, use_threads=False)
            found = table.to_batches()
            if table.num_rows != rows:
                raise DataError(f"holds {table.num_rows} rows, its head says {rows}")
        except (pa.ArrowException, OSError, ValueError, DataError) as error:
            detail = f"row group {group + 1} is damaged ({str(error)[:120]})"
            # A damaged head may claim any number of rows.
            lost = range(start + 1, start + 1 + min(max(rows, 1), 1_000_000))
            broken += [Entry(row, f"{path.name}, row {row}", "bad-row", detail) for row in lost]
            start += max(rows, 0)
            continue
        numbers.extend(range(start + 1, start + rows + 1))
        start += rows
        yield from found


def _mapped(
    path: Path, batches: Iterator[pa.RecordBatch], schema: pa.Schema, numbers: list[int], broken: list[Entry]
) -> pa.Table:
    """Return the rows from an Arrow file in the cache, which is written the first time."""
    facts = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}".encode()).hexdigest()
    kept = cache_folder() / "rows" / f"{key[:32]}.arrow"
    if kept.is_file():
        columns = mapped(kept)
        numbers.extend(range(1, columns.num_rows + 1))
        return columns
    columns = spilled(batches, schema, kept)
    if broken:
        kept.unlink(missing_ok=True)  # the next load must find the damage again
    return columns


def with_class_names(columns: pa.Table) -> pa.Table:
    """Replace the numbers of `ClassLabel` columns by their names, as `datasets` wrote them into the schema."""
    if b"huggingface" not in (columns.schema.metadata or {}):
        return columns
    from datasets import ClassLabel, Features

    try:
        features: dict[str, Any] = dict(Features.from_arrow_schema(columns.schema))
    except (ValueError, TypeError, KeyError, AttributeError):
        return (
            columns  # written by a version of `datasets` with other kinds of features: the plain types remain
        )
    for index, name in enumerate(columns.column_names):
        feature = features.get(name)
        if isinstance(feature, ClassLabel) and pa.types.is_integer(columns.column(index).type):
            names, values = feature.names, columns.column(index).to_pylist()
            spoken = [names[v] if v is not None and 0 <= v < len(names) else None for v in values]
            columns = columns.set_column(index, name, pa.array(spoken, pa.string()))
    return columns
