"""The vectors of a small space in memory: what a server that answers many searches compares a query with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from everclip.search import tables
from everclip.search.index import Hit, View

MOST = 64 * 2**20
"""Bytes of vectors that are kept, at most."""


class HeldVectors:
    """All vectors of a space with the metadata of their items.

    Args:
        view: of the index.
        key: of the space.
    """

    def __init__(self, view: View, key: str) -> None:
        self._view = view
        names = tables.metadata_of(view.vectors(key).schema)
        rows = tables.all_rows(view.vectors(key), ["id", "vector", *names])
        self._ids: list[str] = rows.column("id").to_pylist()
        self._vectors = tables.numpy_of(rows.column("vector"))
        self._rows: pa.Table = rows.select(names)

    def search(self, queries: NDArray[np.float32], top: int) -> list[list[Hit]]:
        """Return the nearest items of each query `(N, D)`, the nearest first; among equals by id."""
        return [self._nearest(scores, top) for scores in queries @ self._vectors.T]

    def _nearest(self, scores: NDArray[np.float32], top: int) -> list[Hit]:
        if top < len(scores):
            least = np.partition(scores, -top)[-top]
            chosen = np.flatnonzero(scores >= least).tolist()  # all of equal score, so that the ids decide
        else:
            chosen = list(range(len(scores)))
        best = sorted(chosen, key=lambda i: (-scores[i], self._ids[i]))[:top]
        rows: Sequence[dict[str, Any]] = (
            self._rows.take(best).to_pylist() if self._rows.num_columns else [{}] * len(best)
        )
        return [
            Hit(self._ids[i], float(scores[i]), None, self._view.metadata(row))
            for i, row in zip(best, rows, strict=True)
        ]


def held_vectors(view: View, key: str) -> HeldVectors | None:
    """Return the vectors of a space if they fit into memory (`MOST`); else `None`.

    Raises:
        CheckpointError: if a file of the table is missing or damaged.
    """
    width = view.state.spaces[key].width
    return HeldVectors(view, key) if 4 * width * view.vectors(key).count_rows() <= MOST else None
