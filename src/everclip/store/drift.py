"""Does new data differ from what a model has measured so far? Two-sample tests on image embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE = 500
"""Images of each side that are tested at most."""

PERMUTATIONS = 200
_RIDGE = 1e-2


@dataclass(frozen=True)
class Drift:
    """The difference between two samples of embeddings.

    Attributes:
        auc: how well a linear classifier tells them apart on images it has not seen (0.5: not at all, 1: fully);
            classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv 1610.06545).
        auc_low, auc_high: its 95 % interval (Hanley and McNeil 1982).
        mmd: unbiased squared maximum mean discrepancy, Gaussian kernel of the median distance (Gretton et al. 2012,
            JMLR 13).
        p: share of permutations with at least this `mmd`.
        items: images of the smaller side.
    """

    auc: float
    auc_low: float
    auc_high: float
    mmd: float
    p: float
    items: int

    @property
    def differs(self) -> bool:
        """Whether the permutation test rejects at 5 %."""
        return self.p < 0.05


def drift(known: Tensor, new: Tensor, seed: int = 0) -> Drift | None:
    """Compare embeddings `(N, D)` and `(M, D)`; `None` with fewer than 10 on a side."""
    draw = np.random.Generator(np.random.Philox(seed))
    first, second = (_sample(rows, draw) for rows in (known, new))
    n = min(len(first), len(second))
    if n < 10:
        return None
    auc, low, high = _auc(first, second, draw)
    mmd, p = _mmd(first, second, draw)
    return Drift(auc, low, high, mmd, p, n)


def _sample(rows: Tensor, draw: np.random.Generator) -> NDArray[np.float64]:
    units = torch.nn.functional.normalize(rows.double(), dim=1).cpu().numpy()
    order = draw.permutation(len(units))[:SAMPLE]
    return np.asarray(units[np.sort(order)], dtype=np.float64)


def _auc(
    first: NDArray[np.float64], second: NDArray[np.float64], draw: np.random.Generator
) -> tuple[float, float, float]:
    """Return the area under the ROC curve of a ridge classifier, each half scored by the other, with its interval."""
    x = np.concatenate([first, second])
    y = np.concatenate([-np.ones(len(first)) / len(first), np.ones(len(second)) / len(second)])
    part = np.empty(len(x), dtype=np.int64)
    for side in (slice(0, len(first)), slice(len(first), len(x))):  # both halves hold both samples
        size = len(part[side])
        part[side] = draw.permutation(np.arange(size) % 2)
    scores = np.empty(len(x))
    for fold in (0, 1):
        train, test = part != fold, part == fold
        mean = x[train].mean(axis=0)
        centred = x[train] - mean
        weights = np.linalg.solve(
            centred.T @ centred / len(centred) + _RIDGE / x.shape[1] * np.eye(x.shape[1]),
            centred.T @ y[train],
        )
        scores[test] = (x[test] - mean) @ weights
    values = []
    for fold in (0, 1):
        low, high = scores[(part == fold) & (y < 0)], scores[(part == fold) & (y > 0)]
        below = (low[None, :] < high[:, None]).mean() + 0.5 * (low[None, :] == high[:, None]).mean()
        values.append(float(below))
    auc = float(np.mean(values))
    n, m = len(first), len(second)
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = (auc * (1 - auc) + (m - 1) * (q1 - auc * auc) + (n - 1) * (q2 - auc * auc)) / (n * m)
    spread = 1.96 * math.sqrt(max(0.0, variance))
    return auc, max(0.0, auc - spread), min(1.0, auc + spread)


def _mmd(
    first: NDArray[np.float64], second: NDArray[np.float64], draw: np.random.Generator
) -> tuple[float, float]:
    x, n = np.concatenate([first, second]), len(first)
    squared = np.maximum(0, 2 - 2 * x @ x.T)
    median = float(np.median(squared[np.triu_indices(len(x), 1)]))
    kernel = np.exp(-squared / max(median, 1e-12))
    np.fill_diagonal(kernel, 0)
    observed = _unbiased(kernel, np.arange(len(x)) < n)
    drawn = [_unbiased(kernel, draw.permutation(len(x)) < n) for _ in range(PERMUTATIONS)]
    reached = sum(value >= observed for value in drawn)
    return observed, (1 + reached) / (1 + PERMUTATIONS)


def _unbiased(kernel: NDArray[np.float64], left: NDArray[np.bool_]) -> float:
    """Return the unbiased estimate of the squared discrepancy; the kernel has a zero diagonal."""
    side = left.astype(np.float64)
    other = 1 - side
    n, m = side.sum(), other.sum()
    of_left, of_right = kernel @ side, kernel @ other
    return float(
        side @ of_left / (n * (n - 1)) + other @ of_right / (m * (m - 1)) - 2 * (side @ of_right) / (n * m)
    )
