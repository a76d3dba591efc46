"""Remember the training images by content. Scores on them are too good, so `everclip eval` warns about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from everclip.contracts import Phase
from everclip.data.table import Table
from everclip.files import optional_write, write_bytes_atomic

FILE = "learned-pictures.bin"
"""Holds the first eight bytes of each image's SHA-256, sorted, big-endian."""

MOST_IMAGES = 1 << 20
"""The most images to remember (8 MiB); if there are more, those with the smallest hashes."""

Hashes = npt.NDArray[np.uint64]


def hashes_of(table: Table) -> Hashes:
    """Return the distinct hashes of a table's images, sorted."""
    hashes = [int(table.content(position)[:16], 16) for position in range(len(table))]
    return np.unique(np.array(hashes, dtype=np.uint64))


class LearnedImages:
    """Remembers images by hash, up to `MOST_IMAGES` of them."""

    def __init__(self, hashes: Hashes | None = None) -> None:
        self._hashes: Hashes = np.zeros(0, dtype=np.uint64) if hashes is None else hashes
        self._tables: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, phases: Sequence[Phase], folder: Path | None = None) -> None:
        """Add the images that phases train on, except those that only decide a threshold; write all into a folder."""
        sources = (
            s for p in phases if not p.chooses for stream in p.streams.values() for s in stream.sources
        )
        for table in (source.table for source in sources):
            first = table.row_key(0) if len(table) else (0, 0)
            rows = (
                first[0],
                first[1] * (1 << 32) + len(table),
            )  # hash rows only once if several phases use them
            if len(table) and rows not in self._tables:
                self._tables.add(rows)
                self._join(hashes_of(table))
        if folder is not None:
            self.write(folder)

    def _join(self, more: Hashes) -> None:
        self._hashes = np.union1d(self._hashes, more)[:MOST_IMAGES]

    def among(self, table: Table) -> int:
        """Return how many distinct images of a table are among the remembered ones."""
        return int(np.isin(hashes_of(table), self._hashes).sum())

    def write(self, folder: Path) -> None:
        """Write the hashes into a folder, merged with those that the folder already holds."""
        self._join(read_learned(folder)._hashes)
        if len(self):
            with optional_write(folder / FILE, "eval cannot warn about images that the model was trained on"):
                write_bytes_atomic(folder / FILE, self._hashes.astype(">u8").tobytes())


def read_learned(folder: Path) -> LearnedImages:
    """Read the hashes of a folder; none if its file is missing or damaged."""
    path = folder / FILE
    if not path.is_file() or path.stat().st_size > 8 * MOST_IMAGES:
        return LearnedImages()
    raw = path.read_bytes()
    return LearnedImages(np.frombuffer(raw[: len(raw) // 8 * 8], dtype=">u8").astype(np.uint64))
