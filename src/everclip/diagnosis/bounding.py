"""Upper bounds of cosines by a few directions, so that most pairs need no product of the full width.

With unit vectors `x`, `y` and orthonormal directions Q `(D, K)`, `p = Q^T x`, `q = Q^T y`: the parts of x and y beside
Q have the lengths `sqrt(1 - |p|^2)` and `sqrt(1 - |q|^2)`, so `x . y <= p . q + sqrt(1 - |p|^2) sqrt(1 - |q|^2)`
(Cauchy-Schwarz): one product of width K + 1. It holds for any Q, and is tighter the more of the rows lies in Q.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WIDTH = 64
"""Directions of a bound."""

SAMPLE = 1024
"""Rows that suffice to choose them."""

_ROUNDS = 2
_ROUNDING = 1e-6  # of a squared length in float32; a bound must not be too small

Floats = NDArray[np.float32]


def directions(sample: Floats) -> Floats:
    """Return orthonormal directions `(D, WIDTH)` that hold much of the rows `(N, D)`: a randomised subspace iteration.

    Source: Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithm 4.4.
    """
    rows = sample.astype(np.float64)
    found = np.random.default_rng(0).standard_normal((rows.shape[1], WIDTH))
    for _ in range(_ROUNDS):
        found, _ = np.linalg.qr(rows.T @ (rows @ found))
    return found.astype(np.float32)


def projected(units: Floats, chosen: Floats) -> Floats:
    """Return the rows `(N, WIDTH + 1)` whose dot products are upper bounds of the cosines of unit rows `(N, D)`."""
    found = np.empty((len(units), chosen.shape[1] + 1), dtype=np.float32)
    inside = found[:, :-1]
    inside[:] = units @ chosen
    beside = 1 - np.einsum("nk,nk->n", inside, inside)
    found[:, -1] = np.sqrt(np.maximum(beside, 0) + _ROUNDING)
    return found
