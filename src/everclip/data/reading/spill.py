"""Keep many rows out of memory: write them to an Arrow file and memory-map it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from everclip.errors import DataError
from everclip.files import cache_folder, warn_once

_Row = TypeVar("_Row")


def spilled(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path | None = None) -> pa.Table:
    """Write batches to an Arrow file and return them memory-mapped.

    If the cache folder is not writable, the file is in the system's temporary folder and is deleted with the process;
    if that is not writable either, the rows stay in memory.

    Args:
        batches: all of the given schema.
        schema: their schema.
        path: where the file is kept for later; without it the file is deleted with the process.

    Raises:
        DataError: if the disk becomes full.
    """
    place = _temporary_file(path.parent if path is not None else cache_folder() / "rows")
    if place is None:
        return pa.Table.from_batches(batches, schema)
    handle, aside = place
    os.close(handle)
    try:
        with pa.OSFile(aside, "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        if path is not None and Path(aside).parent == path.parent:
            os.replace(aside, path)
            return mapped(path)
        return mapped(Path(aside))
    except OSError as error:
        raise DataError(
            f"{Path(aside).parent}: rows cannot be kept there ({error}). Make room, or set EVERCLIP_CACHE to another "
            "folder."
        ) from error
    finally:
        # Mapped pages stay readable after the file is deleted.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def _temporary_file(folder: Path) -> tuple[int, str] | None:
    """Create a file in the folder or the temporary folder; return its handle and path, or `None`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(".arrow.tmp", dir=folder)
    except OSError as error:
        warn_once(
            str(folder),
            f"{folder}: cannot be written ({error}); rows are kept in the temporary folder, and read again the next "
            "time. Set EVERCLIP_CACHE to a folder that can be written.",
        )
    try:
        return tempfile.mkstemp(".arrow.tmp")
    except OSError as error:
        warn_once("temporary", f"the temporary folder cannot be written ({error}); rows stay in memory")
        return None


def mapped(path: Path) -> pa.Table:
    """Return the rows of an Arrow file without reading them into memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def blocks(rows: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
    """Yield lists of at most `size` items."""
    block: list[_Row] = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
