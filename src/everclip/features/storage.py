"""Features in memory, or in safetensors files that are there whole or not at all and are mapped instead of read."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from everclip.contracts import Features
from everclip.distributed import from_first, gather_objects, is_first
from everclip.files import disk_errors, sync_and_rename

Shapes = dict[str, tuple[int, ...]]


def shapes_of(block: Features, count: int) -> Shapes:
    """Return the shapes of `count` rows of features, from a block of them."""
    return {name: (count, *values.shape[1:]) for name, values in block.items()}


def size_of(shapes: Shapes) -> int:
    """Return how many bytes float32 features of these shapes take."""
    return sum(4 * math.prod(shape) for shape in shapes.values())


def load_mapped(path: Path, count: int, together: bool = True) -> Features | None:
    """Map features of `count` rows from a file; `None` if it is missing, damaged, or of another length.

    Args:
        path: the file.
        count: the rows that it must have.
        together: whether all processes ask, at the same place: one that cannot read it has all do without.
    """
    found = _read(path, count)
    return found if not together or all(gather_objects(found is not None)) else None


def _read(path: Path, count: int) -> Features | None:
    try:
        found: Features = load_file(path)
    except (OSError, SafetensorError):
        return None
    fits = all(len(values) == count and values.dtype == torch.float32 for values in found.values())
    return found if found and fits else None


class InMemory:
    """Collects rows in tensors."""

    def __init__(self, shapes: Shapes) -> None:
        self._features = {name: torch.empty(shape) for name, shape in shapes.items()}
        self._next = 0

    def put(self, rows: Features) -> None:
        """Append rows `(n, ...)`."""
        count = len(next(iter(rows.values())))
        for name, values in rows.items():
            self._features[name][self._next : self._next + count] = values
        self._next += count

    def finish(self) -> Features:
        """Return all rows."""
        return self._features


class InFile:
    """Collects rows in a safetensors file, written aside and renamed; one process alone writes.

    Attributes:
        path: the file.
        problem: after `finish`, why the file is not in its place; empty if it is.
    """

    def __init__(self, path: Path, shapes: Shapes, together: bool = True) -> None:
        self.path, self.problem, self._together, self._next = path, "", together, 0
        # No number of a process: those of two machines, or of two containers, may be equal.
        self._aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        self._arrays: dict[str, Any] = {}
        self._writes = not together or is_first()
        if self._writes:
            with self._or_discard(), disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._arrays = _open(self._aside, shapes)

    def put(self, rows: Features) -> None:
        """Append rows `(n, ...)`."""
        count = len(next(iter(rows.values())))
        for name, array in self._arrays.items():
            array[self._next : self._next + count] = rows[name].numpy()
        self._next += count

    def finish(self) -> Features:
        """Map the rows and put the file in its place; where that fails, `problem` says why, and the rows are there."""
        found: Features | None = None
        if self._writes:
            # Before it has its name: from then on another run that bounds the folder may remove it.
            found = self._mapped()
            try:
                sync_and_rename(self._aside, self.path)
            except OSError as error:
                self.problem = str(error)
                self.discard()
        if not self._together:
            assert found is not None  # it wrote
            return found
        self.problem = from_first(self.problem)  # nobody reads before it is written
        if not self._writes and not self.problem:
            with contextlib.suppress(OSError, SafetensorError):
                found = load_file(self.path)
        if not all(gather_objects(found is not None)):
            found = from_first(found)
        assert found is not None  # the first process has it
        return found

    def discard(self) -> None:
        """Remove what was written aside."""
        self._arrays.clear()
        if self._writes:
            with contextlib.suppress(OSError):
                self._aside.unlink(missing_ok=True)

    def _mapped(self) -> Features:
        with self._or_discard(), disk_errors(self.path):
            for array in self._arrays.values():
                if isinstance(array, np.memmap):
                    array.flush()
            self._arrays.clear()
            found: Features = load_file(self._aside)
            return found

    @contextlib.contextmanager
    def _or_discard(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.discard()
            raise


def _open(file: Path, shapes: Shapes) -> dict[str, Any]:
    """Write the head of a safetensors file, take its room, and map each tensor of it."""
    head, offset = dict[str, Any](), 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        head[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "w+b") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + offset)
        _reserve(handle.fileno(), 8 + len(text) + offset)
    return {
        name: np.memmap(file, np.float32, "r+", 8 + len(text) + head[name]["data_offsets"][0], shape)
        if math.prod(shape)
        else np.empty(shape, np.float32)
        for name, shape in shapes.items()
    }


def _reserve(handle: int, size: int) -> None:
    """Take the room of a file now: a mapped page that finds the disk full later would end the process.

    Raises:
        OSError: if the disk has no room for it.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
