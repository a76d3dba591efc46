"""Which pictures were learned from, by their content: a model that is measured on them looks better than it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from everclip.contracts import Phase
from everclip.data.table import Table
from everclip.files import optional_write, write_bytes_atomic

FILE = "learned-pictures.bin"
"""The first eight bytes of each picture's SHA-256, sorted, big-endian."""

MOST = 1 << 20
"""Pictures that are remembered (8 MiB); of more, those with the smallest hashes."""

Hashes = npt.NDArray[np.uint64]


def hashes_of(table: Table) -> Hashes:
    """Return the distinct hashes of a table's pictures, sorted."""
    found = [int(table.content(position)[:16], 16) for position in range(len(table))]
    return np.unique(np.array(found, dtype=np.uint64))


class LearnedPictures:
    """Remembers pictures by hash, up to `MOST` of them."""

    def __init__(self, hashes: Hashes | None = None) -> None:
        self._hashes: Hashes = np.zeros(0, dtype=np.uint64) if hashes is None else hashes
        self._tables: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, phases: Sequence[Phase], folder: Path | None = None) -> None:
        """Take in what phases learn from (what only decides a threshold is not learned), and write it to a folder."""
        sources = (
            s for p in phases if not p.chooses for stream in p.streams.values() for s in stream.sources
        )
        for table in (source.table for source in sources):
            mark = table.row_key(0) if len(table) else (0, 0)
            known = mark[0], mark[1] * (1 << 32) + len(table)  # the same rows in every phase are hashed once
            if len(table) and known not in self._tables:
                self._tables.add(known)
                self._join(hashes_of(table))
        if folder is not None:
            self.write(folder)

    def _join(self, more: Hashes) -> None:
        self._hashes = np.union1d(self._hashes, more)[:MOST]

    def among(self, table: Table) -> int:
        """Return how many different pictures of a table were learned from, as far as is remembered."""
        return int(np.isin(hashes_of(table), self._hashes).sum())

    def write(self, folder: Path) -> None:
        """Write them into a folder, together with those that it holds already."""
        self._join(read_pictures(folder)._hashes)
        if len(self):
            with optional_write(folder / FILE, "eval cannot warn of pictures that were learned from"):
                write_bytes_atomic(folder / FILE, self._hashes.astype(">u8").tobytes())


def read_pictures(folder: Path) -> LearnedPictures:
    """Return what a folder remembers: nothing where it has no file, or a damaged one."""
    path = folder / FILE
    if not path.is_file() or path.stat().st_size > 8 * MOST:
        return LearnedPictures()
    raw = path.read_bytes()
    return LearnedPictures(np.frombuffer(raw[: len(raw) // 8 * 8], dtype=">u8").astype(np.uint64))
