"""Herding: choose the samples that represent a set best, in order (iCaRL, arXiv 1611.07725, algorithm 4)."""

from __future__ import annotations

import torch

from everclip.errors import DataError


def herd(features: torch.Tensor, count: int) -> list[int]:
    """Return `count` indices; each new one keeps the mean of the chosen rows nearest to the mean of all.

    With unit rows `phi`, their mean `mu`, and `S` the sum of the `k` chosen so far, the next one is
    `argmin_i ||mu - (phi_i + S) / (k + 1)||` among those not chosen; the earliest in a tie. The beginning of the list
    is the result for a smaller `count`.

    Args:
        features: `(N, D)` unit rows.
        count: the number to choose; all rows if there are fewer.

    Raises:
        DataError: if a feature is NaN or infinite.
    """
    rows = features.double()
    if not bool(rows.isfinite().all()):
        raise DataError("herding: an embedding is NaN or infinite; the model has diverged.")
    mean, norms = rows.mean(dim=0), rows.square().sum(dim=1)
    left = torch.ones(len(rows), dtype=torch.bool)
    total = torch.zeros_like(mean)
    chosen: list[int] = []
    for number in range(1, min(count, len(rows)) + 1):
        # n^2 ||mu - (phi + S) / n||^2, without the terms that are equal for all rows.
        distance = norms + rows @ (2 * (total - number * mean))
        best = int(distance.masked_fill(~left, torch.inf).argmin())
        left[best] = False
        total += rows[best]
        chosen.append(best)
    return chosen
