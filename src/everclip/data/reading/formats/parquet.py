"""Read Parquet: small files in memory, large ones through a memory-mapped Arrow file; one row group at a time.

Not read through `datasets`: it rejects the whole file for one damaged row group. What it writes into the schema
(`ClassLabel` names, `Image`) is read with its own `Features`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from everclip.data.pictures.remote import RemoteFile
from everclip.data.reading.formats.raw import Raw, require_few
from everclip.data.reading.quarantine import DamagedFileError, Entry
from everclip.data.reading.spill import mapped, spilled
from everclip.errors import DataError
from everclip.files import cache_folder

IN_MEMORY = 256 * 1024 * 1024
"""Parquet files of a folder that take no more together are held in memory."""

_ROWS = 256  # at a time
_BUFFER = 1024 * 1024
# A few kilobytes can decompress to any number of equal rows.
_LEAST_UNPACKED = 4 * IN_MEMORY
_MOST_TIMES = 100
_MOST_LOST = 1_000_000

log = logging.getLogger(__name__)


def read_parquet(path: Path | RemoteFile) -> Raw:
    """Read a `.parquet` file; rows of a damaged row group are set aside.

    Raises:
        DamagedFileError: if the whole file cannot be read.
    """
    broken: list[Entry] = []
    numbers: list[int] = []
    try:
        # Buffered: a row group can be as large as the file, and its columns would be read at once.
        opened = path if isinstance(path, Path) else path.open()
        with pq.ParquetFile(opened, memory_map=False, buffer_size=_BUFFER, pre_buffer=False) as file:
            require_few(file.schema_arrow.names, str(path))
            schema = file.schema_arrow
            batches = _batches(path, file, numbers, broken)
            if _size_together(path) <= IN_MEMORY:
                columns = pa.Table.from_batches(list(batches), schema)
            else:
                columns = _mapped(path, batches, schema, numbers, broken)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFileError(f"{path}: not a readable Parquet file ({error}).") from error
    return Raw(path.name, with_class_names(columns), numbers, broken, root=path.parent)


def _size_together(path: Path | RemoteFile) -> int:
    """Return the size of all Parquet files of a folder: they are read together."""
    if not isinstance(path, Path):
        return IN_MEMORY + 1  # nobody knows how many are beside it
    return sum(found.stat().st_size for found in {path, *path.parent.glob("*.parquet")} if found.is_file())


def _batches(
    path: Path | RemoteFile, file: pq.ParquetFile, numbers: list[int], broken: list[Entry]
) -> Iterator[pa.RecordBatch]:
    size = path.stat().st_size if isinstance(path, Path) else path.size
    start, unpacked, most = 0, 0, max(_LEAST_UNPACKED, _MOST_TIMES * size)
    for group in range(file.num_row_groups):
        rows, done = file.metadata.row_group(group).num_rows, 0
        try:
            for batch in file.iter_batches(_ROWS, row_groups=[group], use_threads=False):
                unpacked += batch.nbytes
                if unpacked > most:
                    raise DataError(
                        f"{path}: unpacks to more than {most:,} bytes, {most // size:,} times its size."
                    )
                numbers.extend(range(start + done + 1, start + done + batch.num_rows + 1))
                done += batch.num_rows
                yield batch
            problem = f"holds {done} rows, its head says {rows}" if done != rows else None
        except (pa.ArrowException, OSError, ValueError) as error:
            problem = str(error)[:120]
        if problem is not None:
            detail = f"row group {group + 1} is damaged ({problem})"
            # A damaged head may claim any number of rows.
            lost = range(start + done + 1, start + 1 + done + min(max(rows - done, 1), _MOST_LOST))
            broken += [Entry(row, f"{path.name}, row {row}", "bad-row", detail) for row in lost]
        start += max(rows, done)


def _mapped(
    path: Path | RemoteFile,
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    numbers: list[int],
    broken: list[Entry],
) -> pa.Table:
    """Return the rows from an Arrow file in the cache; write it if it does not exist."""
    if isinstance(path, Path):
        facts = path.stat()
        state = f"{os.path.realpath(path)}\0{facts.st_size}\0{facts.st_mtime_ns}"
        key = hashlib.sha256(state.encode()).hexdigest()
    else:
        key = path.key
    kept = cache_folder() / "rows" / f"{key[:32]}.arrow"
    try:
        if kept.is_file():
            columns = mapped(kept)
            numbers.extend(range(1, columns.num_rows + 1))
            return columns
    except (pa.ArrowException, OSError) as error:
        log.warning("%s: damaged (%s); %s is read again.", kept, error, path)
    columns = spilled(batches, schema, kept)
    if broken:
        with contextlib.suppress(OSError):
            kept.unlink(missing_ok=True)  # the next load must find the damage again
    return columns


def with_class_names(columns: pa.Table) -> pa.Table:
    """Replace the numbers of `ClassLabel` columns by the names in the schema that `datasets` wrote."""
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
            labels = [names[v] if v is not None and 0 <= v < len(names) else None for v in values]
            columns = columns.set_column(index, name, pa.array(labels, pa.string()))
    return columns
