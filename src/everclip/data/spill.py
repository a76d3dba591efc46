"""Rows that are too many for the memory: written to an Arrow file and mapped back, so that memory stays flat."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from everclip.errors import DataError
from everclip.files import cache_folder

_Row = TypeVar("_Row")


def spilled(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path | None = None) -> pa.Table:
    """Write batches to an Arrow file and return them memory-mapped.

    Args:
        batches: all of the given schema.
        schema: their schema.
        path: where the file stays for the next time; without it the file goes away with the process.

    Raises:
        DataError: if the file cannot be written.
    """
    folder = path.parent if path is not None else cache_folder() / "rows"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(".arrow.tmp", dir=folder)
        os.close(handle)
        try:
            with pa.OSFile(aside, "wb") as file, pa.ipc.new_file(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            if path is not None:
                os.replace(aside, path)
                return mapped(path)
            return mapped(Path(aside))
        finally:
            # Mapped pages stay readable after the name is gone.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
    except OSError as error:
        raise DataError(
            f"{folder}: rows cannot be kept there ({error}). Make room, or set EVERCLIP_CACHE to another folder."
        ) from error


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
