"""Arrays of embeddings in memory, or in files that are there whole or not at all and are mapped instead of read."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from everclip.distributed import from_first, gather_objects, is_first
from everclip.files import disk_errors, put_in_place

Values = npt.NDArray[np.float32]


def load_mapped(path: Path, count: int) -> Values | None:
    """Map an array `(count, D)` from a file; `None` if the file is missing, damaged, or of another length.

    All processes must call it at the same place; one that cannot read it has all of them do without.
    """
    found = _read(path, count)
    return found if all(gather_objects(found is not None)) else None


def _read(path: Path, count: int) -> Values | None:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == count and found.dtype == np.float32 else None


class InMemory:
    """Collects rows in an array."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._values: Values = np.empty(shape, np.float32)
        self._next = 0

    def put(self, rows: Values) -> None:
        """Append rows `(n, D)`."""
        self._values[self._next : self._next + len(rows)] = rows
        self._next += len(rows)

    def finish(self) -> Values:
        """Return the whole array."""
        return self._values


def _reserve(file: Path) -> None:
    """Take the room of a file now: a mapped page that finds the disk full later would end the process.

    Raises:
        OSError: if the disk has no room for it.
    """
    if hasattr(os, "posix_fallocate"):
        with open(file, "r+b") as handle:
            try:
                os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise


class InFile:
    """Collects rows in a file, written aside and renamed; only the first process writes."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self._path, self._shape, self._next = path, shape, 0
        self._aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._values: Any = None
        if is_first():
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._values = np.lib.format.open_memmap(self._aside, "w+", np.float32, shape)
                _reserve(self._aside)

    def put(self, rows: Values) -> None:
        """Append rows `(n, D)`."""
        if self._values is not None:
            self._values[self._next : self._next + len(rows)] = rows
        self._next += len(rows)

    def finish(self) -> Values:
        """Put the file in its place and map it."""
        if self._values is not None:
            with disk_errors(self._path):
                self._values.flush()
                self._values = None
                put_in_place(self._aside, self._path)
        from_first(True)  # nobody reads before it is written
        found: Values = np.load(self._path, mmap_mode="r", allow_pickle=False)
        return found


def writer(path: Path | None, shape: tuple[int, int]) -> InMemory | InFile:
    """Return what collects rows into an array of `shape`: in a file if there is a path, else in memory."""
    return InMemory(shape) if path is None else InFile(path, shape)
