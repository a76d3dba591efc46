"""Immutable contents named by their SHA-256: versions share the tensors and rows that an update did not change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from everclip.errors import CheckpointError
from everclip.files import clear_leftovers, write_bytes_atomic

_KEY = "tensor"


def digest(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class Objects:
    """The contents of a store, each in a file of its own (`ab/abcdef...`).

    Args:
        folder: created when something is put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """Return the file of a content."""
        return self._folder / name[:2] / name

    def put(self, data: bytes) -> str:
        """Keep a content; return its name. A content that is there already is not written again.

        Raises:
            CheckpointError: if the disk is full or the folder cannot be written.
        """
        name = digest(data)
        if not self.path(name).is_file():
            write_bytes_atomic(self.path(name), data)
        return name

    def get(self, name: str) -> bytes:
        """Return a content.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        path = self.path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
        if digest(data) != name:
            raise CheckpointError(
                f"{path}: damaged: its content is not the one it was written with (SHA-256)."
            )
        return data

    def put_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
        """Keep tensors; return the name of each one's content."""
        return {
            key: self.put(save({_KEY: tensor.detach().cpu().contiguous().clone()}))
            for key, tensor in tensors.items()
        }

    def get_tensors(self, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """Return the tensors that `put_tensors` kept.

        Raises:
            CheckpointError: if one is missing or damaged; names the tensor.
        """
        self.need(names.values())
        found = {}
        for key, name in names.items():
            try:
                found[key] = load(self.get(name))[_KEY]
            except CheckpointError as error:
                raise CheckpointError(f"tensor {key}: {error}") from error
            except (SafetensorError, KeyError) as error:
                raise CheckpointError(f"tensor {key}: {self.path(name)}: is no tensor ({error}).") from error
        return found

    def need(self, names: Iterable[str]) -> None:
        """Say which contents are read next, so that those far away are fetched together."""

    def names(self) -> Iterator[str]:
        """Yield the names of all contents."""
        for folder in sorted(self._folder.glob("??")):
            yield from sorted(path.name for path in folder.iterdir() if len(path.name) == 64)

    def remove(self, name: str) -> int:
        """Remove a content; return its size in bytes."""
        path = self.path(name)
        size = path.stat().st_size
        path.unlink()
        return size

    def clear(self) -> None:
        """Remove what killed processes left. Call it only while no other process writes."""
        for folder in self._folder.glob("??"):
            clear_leftovers(folder)
