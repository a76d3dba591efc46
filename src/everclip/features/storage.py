"""Features in memory, or in safetensors files that are written atomically and memory-mapped."""

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
    """Return the size in bytes of float32 features of these shapes."""
    return sum(4 * math.prod(shape) for shape in shapes.values())


def load_mapped(path: Path, count: int, together: bool = True) -> Features | None:
    """Map features of `count` rows from a file; return `None` if it is missing, damaged, or of another length.

    Args:
        path: the file.
        count: the number of rows that it must have.
        together: whether all processes make the same call; if one cannot read the file, all return `None`.
    """
    features = _read(path, count)
    return features if not together or all(gather_objects(features is not None)) else None


def _read(path: Path, count: int) -> Features | None:
    try:
        features: Features = load_file(path)
    except (OSError, SafetensorError):
        return None
    fits = all(len(values) == count and values.dtype == torch.float32 for values in features.values())
    return features if features and fits else None


class InMemory:
    """Collect rows in tensors."""

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
    """Collect rows in a safetensors file, written under a temporary name and renamed; only one process writes.

    Attributes:
        path: the file.
        problem: after `finish`, why the file could not be renamed; empty if it was.
    """

    def __init__(self, path: Path, shapes: Shapes, together: bool = True) -> None:
        self.path, self.problem, self._together, self._next = path, "", together, 0
        # Not the process number, which may be equal on two machines or in two containers.
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
        """Map the rows and rename the file to its final name; if renaming fails, set `problem` and return the rows."""
        features: Features | None = None
        if self._writes:
            # Map before renaming: afterwards, another run that limits the folder may remove the file.
            features = self._mapped()
            try:
                sync_and_rename(self._aside, self.path)
            except OSError as error:
                self.problem = str(error)
                self.discard()
        if not self._together:
            assert features is not None  # set by `_mapped`
            return features
        self.problem = from_first(self.problem)  # wait until the file is written
        if not self._writes and not self.problem:
            with contextlib.suppress(OSError, SafetensorError):
                features = load_file(self.path)
        if not all(gather_objects(features is not None)):
            features = from_first(features)
        assert features is not None  # the first process has it
        return features

    def discard(self) -> None:
        """Remove the temporary file."""
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
            features: Features = load_file(self._aside)
            return features

    @contextlib.contextmanager
    def _or_discard(self) -> Iterator[None]:
        with contextlib.ExitStack() as undo:
            undo.callback(self.discard)
            yield
            undo.pop_all()


def _open(file: Path, shapes: Shapes) -> dict[str, Any]:
    """Write the header of a safetensors file, reserve its disk space, and map each tensor."""
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
    """Reserve the disk space of a file: if the disk were full later, writing to a mapped page would kill the process.

    Raises:
        OSError: if the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
