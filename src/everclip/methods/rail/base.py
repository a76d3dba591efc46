"""What the ridge heads share: weights with a column per class, and outputs in blocks of bounded memory."""

from __future__ import annotations

import torch
from torch import nn

from everclip.errors import ConfigError

ROWS = 1024
"""Samples that are expanded together."""


class Ridge(nn.Module):
    """A regression from features to one-hot classes that takes its data in batches.

    All state is buffers in float64, so that a checkpoint taken between two batches holds everything.

    Args:
        rows: how many rows the weights have.
        ridge: added to the diagonal.
    """

    weights: torch.Tensor

    def __init__(self, rows: int, ridge: float) -> None:
        super().__init__()
        self.ridge = ridge
        self.register_buffer("weights", torch.zeros(rows, 0, dtype=torch.float64))

    @property
    def classes(self) -> int:
        """How many columns there are."""
        return self.weights.shape[1]

    def widen(self, classes: int) -> None:
        """Append columns of zeros until there are `classes`."""
        self.weights = wider(self.weights, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the weights multiply, `(N, rows)` float64, of unit features `(N, d)`."""
        raise NotImplementedError

    def add(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in samples `(N, d)` of the columns `labels` `(N,)`; N may be 0."""
        raise NotImplementedError

    def solve(self) -> None:
        """Compute the weights from everything that was added; again changes nothing."""

    def shape(self) -> dict[str, int]:
        """Return what decides the shapes of the buffers, as JSON."""
        return {"classes": self.classes}

    def outputs(self, x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return raw outputs `(N, K)` float64 of the classes `columns` `(K,)` for unit features `(N, d)`."""
        weights = self.weights[:, columns]
        parts = [self.features(x[i : i + ROWS]) @ weights for i in range(0, len(x), ROWS)]
        return torch.cat(parts) if parts else weights.new_zeros(0, len(columns))

    def error(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of the weights as they are, summed over classes; a float32 scalar."""
        outputs = self.outputs(x, torch.arange(self.classes, device=x.device))
        return ((outputs - one_hot(labels, self.classes)) ** 2).sum(dim=1).mean().float()


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return `(N, classes)` float64 with a single 1 per row."""
    return torch.nn.functional.one_hot(labels, classes).double()


def solve_spd(matrix: torch.Tensor, right: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return `(matrix + ridge I)^-1 right` by Cholesky.

    Args:
        matrix: `(D, D)`, symmetric and contiguous; used up, since a copy of it may not fit in memory.
        right: `(D, K)`.
        ridge: added to the diagonal.

    Raises:
        ConfigError: if the sum is not positive definite in floating point.
    """
    matrix.diagonal().add_(ridge)
    factor = matrix.mT  # columns first, as LAPACK takes it, so that nothing is copied
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    if bool(failed):
        raise ConfigError(
            f"method.ridge: {ridge:g} on the diagonal is too little to solve the regression; raise it."
        )
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    found: torch.Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return found


def wider(values: torch.Tensor, classes: int) -> torch.Tensor:
    """Return `values` `(rows, C)` with columns of zeros appended until there are `classes`."""
    missing = classes - values.shape[1]
    return torch.cat([values, values.new_zeros(len(values), missing)], dim=1) if missing > 0 else values
