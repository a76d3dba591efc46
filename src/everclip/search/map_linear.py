"""Linear maps of vectors: a rotation that is pulled to the identity, a ridge that is pulled to a rotation.

Two models of one line share most of their space. So every fit starts from "nothing changed" and moves away from it as
far as a held-out part of the pairs supports: the rotation from the identity, the affine map from the rotation. A few
hundred pairs of wide vectors then do not make a map worse than none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

PULLS = (0.0, 0.01, 0.1, 1.0, 10.0)
"""Pulls of a rotation to the identity, as multiples of the mean singular value of `X^T Y`."""

PENALTIES = tuple(10.0**power for power in range(-5, 4))
"""Ridge penalties, as multiples of the mean eigenvalue of `X^T X`."""

RANKS = (0.5, 0.25, 0.125)
"""Ranks of the residual of an affine map, as shares of the width; a full rank is tried, too."""


class Linear(NamedTuple):
    """`x -> x W + b`, float64."""

    weight: torch.Tensor
    bias: torch.Tensor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x W + b`."""
        return x @ self.weight + self.bias


def rotation(x: torch.Tensor, y: torch.Tensor, pull: float, centred: bool) -> Linear:
    """Return the orthogonal map of least squares: `W = U V^T` with `U S V^T = X^T Y + pull I` (Schoenemann 1966).

    Args:
        x, y: `(N, D)` and `(N, E)`. Of different widths, W has orthonormal rows or columns: it is the square solution
            for vectors padded with zeros, without the padding.
        pull: strength of the pull to the identity, as a multiple of the mean singular value; 0 between other widths.
        centred: whether the means of both sides are matched first; the map then has a bias.
    """
    mean_x, mean_y = _means(x, y, centred)
    cross = (x - mean_x).T @ (y - mean_y)
    if pull:
        cross = cross + pull * torch.linalg.svdvals(cross).mean() * torch.eye(*cross.shape, dtype=cross.dtype)
    left, _, right = torch.linalg.svd(cross, full_matrices=False)
    weight = left @ right
    return Linear(weight, mean_y - mean_x @ weight)


def ridge(x: torch.Tensor, y: torch.Tensor, start: Linear, penalty: float, rank: float = 1.0) -> Linear:
    """Return the affine map of least squares whose distance from `start` is penalised.

    `min_D || Yc - Xc (W0 + D) ||^2 + p m || D ||^2` with centred `Xc`, `Yc`, and `m` the mean eigenvalue of `Xc^T Xc`.

    Args:
        x, y: `(N, D)` and `(N, E)`.
        start: the map W0.
        penalty: `p`; 0 is ordinary least squares.
        rank: share of the width that D keeps, by a truncated SVD of `Xc D` (reduced-rank regression).
    """
    mean_x, mean_y = _means(x, y, True)
    x, y = x - mean_x, y - mean_y
    moments = x.T @ x
    if penalty:
        values, vectors = torch.linalg.eigh(moments)
        scale = values + penalty * values.mean()
        change = (vectors / scale) @ (vectors.T @ (x.T @ (y - x @ start.weight)))
    else:
        change = torch.linalg.lstsq(x, y - x @ start.weight, driver="gelsd").solution
    weight = start.weight + _truncated(x, change, rank)
    return Linear(weight, mean_y - mean_x @ weight)


def _truncated(x: torch.Tensor, change: torch.Tensor, rank: float) -> torch.Tensor:
    kept = max(1, round(rank * min(change.shape)))
    if kept >= min(change.shape):
        return change
    fitted = x @ change
    directions: torch.Tensor = torch.linalg.eigh(fitted.T @ fitted).eigenvectors[:, -kept:]
    return change @ directions @ directions.T


def best_rotation(
    x: torch.Tensor, y: torch.Tensor, fit: torch.Tensor, held: torch.Tensor
) -> tuple[float, bool]:
    same = x.shape[1] == y.shape[1]
    tried = [(pull, centred) for centred in (False, True) for pull in (PULLS if same else PULLS[:1])]
    maps = (rotation(x[fit], y[fit], pull, centred) for pull, centred in tried)
    return tried[_nearest(maps, x[held], y[held])]


def best_ridge(
    x: torch.Tensor, y: torch.Tensor, start: Linear, fit: torch.Tensor, held: torch.Tensor
) -> tuple[float, float]:
    """Return the penalty, and the share of the rank, that serve the held-out part best."""
    full = [(penalty, 1.0) for penalty in PENALTIES]
    best = full[_nearest((ridge(x[fit], y[fit], start, *one) for one in full), x[held], y[held])][0]
    ranks = [(best, rank) for rank in (1.0, *RANKS)]
    return ranks[_nearest((ridge(x[fit], y[fit], start, *one) for one in ranks), x[held], y[held])]


def _nearest(maps: Iterable[Linear], x: torch.Tensor, y: torch.Tensor) -> int:
    """Return the number of the map with the largest mean cosine to the target; the first of equal ones."""
    scores = torch.stack([mean_cosine(one.of(x), y) for one in maps])
    return int((scores >= scores.max() - 1e-9).nonzero()[0])


def mean_cosine(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean cosine of rows `(N, E)`, one of them of unit length already."""
    return (normalize(found, dim=1) * wanted).sum(dim=1).mean()


def _means(x: torch.Tensor, y: torch.Tensor, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return (x.mean(dim=0), y.mean(dim=0)) if centred else (x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1]))
