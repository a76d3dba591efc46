"""Herding: which samples of a set stand best for all of it, the best first (iCaRL, arXiv 1611.07725, algorithm 4)."""

from __future__ import annotations

import torch

from everclip.errors import DataError


def herd(features: torch.Tensor, count: int) -> list[int]:
    """Return `count` positions whose mean stays nearest to the mean of all, after each of them.

    With unit rows `phi`, their plain mean `mu`, and `S` the sum of the `k` chosen so far, the next one is
    `argmin_i ||mu - (phi_i + S) / (k + 1)||` among those not chosen; the earliest of equals. A list cut short is still
    a herded list.

    Args:
        features: `(N, D)` unit rows.
        count: how many; all of them where there are fewer.

    Raises:
        DataError: if a feature is NaN or infinite.
    """
    rows = features.double()
    if not bool(rows.isfinite().all()):
        raise DataError("herding: an embedding is NaN or infinite; the model that made it has diverged.")
    mean, norms = rows.mean(dim=0), rows.square().sum(dim=1)
    left = torch.ones(len(rows), dtype=torch.bool)
    total = torch.zeros_like(mean)
    chosen: list[int] = []
    for number in range(1, min(count, len(rows)) + 1):
        # ||mu - (phi + S) / n||^2 but for what is the same for all, times n^2.
        distance = norms + rows @ (2 * (total - number * mean))
        best = int(distance.masked_fill(~left, torch.inf).argmin())
        left[best] = False
        total += rows[best]
        chosen.append(best)
    return chosen
