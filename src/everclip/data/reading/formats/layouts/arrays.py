"""Data sets with all images in one binary file: MNIST (idx) and CIFAR-100."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from everclip.data.catalog.cards import Card
from everclip.data.reading.formats.layouts.common import Dataset, ImageList, Layout
from everclip.errors import DataError

Pixels = npt.NDArray[np.uint8]
MOST_BYTES = 1 << 28
"""Limit of one uncompressed file; the training images of MNIST have 47 MB, those of CIFAR-100 154 MB."""

_CIFAR_ROW = 2 + 3 * 32 * 32


def _mnist(dataset: Dataset, card: Card) -> ImageList:
    found, parts = ImageList(), []
    for side, name in (("train", "train"), ("test", "t10k")):
        labels = _idx(dataset.folder / f"{name}-labels-idx1-ubyte", 1)
        images = _idx(dataset.folder / f"{name}-images-idx3-ubyte", 3)
        if len(labels) != len(images):
            raise DataError(
                f"{dataset.folder}: {name} holds {len(images):,} images and {len(labels):,} labels."
            )
        _require_below(labels, card, dataset.folder / f"{name}-labels-idx1-ubyte")
        for i, label in enumerate(labels.tolist()):
            found.add(f"{name} {i}", label, side)
        parts.append(images)
    found.pictures = lambda: chain.from_iterable(_pngs(part) for part in parts)
    return found


def _idx(path: Path, dims: int) -> Pixels:
    """Read an idx file of bytes, also compressed by gzip."""
    packed = path.with_name(path.name + ".gz")
    try:
        with open(path, "rb") if path.is_file() else gzip.open(packed) as file:
            magic, *shape = struct.unpack(f">{1 + dims}I", file.read(4 * (1 + dims)))
            size = math.prod(shape)
            # Decompress no more than the header states: a file of megabytes may fill the memory.
            data = file.read(size + 1) if size <= MOST_BYTES else b""
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path} (or .gz): cannot be read as an idx file ({error}).") from error
    if magic != 0x800 + dims or len(data) != size or 0 in shape[1:]:
        raise DataError(
            f"{path}: not an idx file of {dims} dimensions of bytes (at most {MOST_BYTES >> 20:,} MB), or one that "
            "ends early."
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _require_below(labels: Pixels, card: Card, path: Path) -> None:
    if len(labels) and labels.max() >= len(card.names):
        raise DataError(f"{path}: holds the class {labels.max()}; {card.title} has {len(card.names)}.")


def _cifar(dataset: Dataset, card: Card) -> ImageList:
    found, parts = ImageList(), []
    for side in ("train", "test"):
        path = dataset.folder / f"{side}.bin"
        data = _bytes_of(path)
        if len(data) % _CIFAR_ROW:
            raise DataError(
                f"{path}: {len(data):,} bytes are no whole number of rows of {_CIFAR_ROW:,}: cut off?"
            )
        rows = data.reshape(-1, _CIFAR_ROW)
        _require_below(rows[:, 1], card, path)
        for i, label in enumerate(rows[:, 1].tolist()):
            found.add(f"{side} {i}", label, side)
        parts.append(rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    found.pictures = lambda: chain.from_iterable(_pngs(part) for part in parts)
    return found


def _bytes_of(path: Path) -> Pixels:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= MOST_BYTES:
                return np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    raise DataError(
        f"{path}: {size:,} bytes; expected rows of {_CIFAR_ROW:,} (at most {MOST_BYTES >> 20:,} MB): another file?"
    )


def _pngs(images: Iterable[Pixels]) -> Iterator[bytes]:
    """Encode images without loss; the same pixels always give the same bytes."""
    for image in images:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
        yield file.getvalue()


LAYOUTS = {
    "mnist": Layout(("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"), _mnist),
    "cifar100": Layout(("train.bin",), _cifar),
}
