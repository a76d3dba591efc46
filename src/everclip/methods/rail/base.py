"""The base of the ridge heads: weights with a column per class, and outputs in blocks of bounded memory."""

from __future__ import annotations

import torch
from torch import nn

from everclip.errors import ConfigError

ROWS = 1024
"""Number of samples that are expanded together."""


class Ridge(nn.Module):
    """A regression from features to one-hot classes that receives its data in batches.

    All state is in buffers of type float64, so that a checkpoint between two batches holds everything.

    Args:
        rows: the number of rows of the weights.
        ridge: added to the diagonal.
    """

    weights: torch.Tensor

    def __init__(self, rows: int, ridge: float) -> None:
        super().__init__()
        self.ridge = ridge
        self.register_buffer("weights", torch.zeros(rows, 0, dtype=torch.float64))

    @property
    def classes(self) -> int:
        """The number of columns."""
        return self.weights.shape[1]

    def widen(self, classes: int) -> None:
        """Append columns of zeros until there are `classes`."""
        self.weights = wider(self.weights, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the regression features `(N, rows)` float64 of unit embeddings `(N, d)`."""
        raise NotImplementedError

    def add(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """Add samples `(N, d)` of the columns `labels` `(N,)`; N may be 0."""
        raise NotImplementedError

    def solve(self) -> None:
        """Compute the weights from all added samples; idempotent."""

    def shape(self) -> dict[str, int]:
        """Return the sizes that decide the shapes of the buffers, as JSON."""
        return {"classes": self.classes}

    def outputs(self, x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return raw outputs `(N, K)` float64 of the classes `columns` `(K,)` for unit features `(N, d)`."""
        weights = self.weights[:, columns]
        parts = [self.features(x[i : i + ROWS]) @ weights for i in range(0, len(x), ROWS)]
        return torch.cat(parts) if parts else weights.new_zeros(0, len(columns))

    def error(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of the current weights, summed over classes; a float32 scalar."""
        outputs = self.outputs(x, torch.arange(self.classes, device=x.device))
        return ((outputs - one_hot(labels, self.classes)) ** 2).sum(dim=1).mean().float()


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return `(N, classes)` float64 with a single 1 per row."""
    return torch.nn.functional.one_hot(labels, classes).double()


def solve_spd(matrix: torch.Tensor, right: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return `(matrix + ridge I)^-1 right` by Cholesky.

    Args:
        matrix: `(D, D)`, symmetric and contiguous; overwritten, because a copy may not fit in memory.
        right: `(D, K)`.
        ridge: added to the diagonal.

    Raises:
        ConfigError: if the sum is not positive definite in floating point.
    """
    matrix.diagonal().add_(ridge)
    factor = matrix.mT  # column-major, the layout of LAPACK, so that nothing is copied
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    if bool(failed):
        raise ConfigError(
            f"method.ridge: {ridge:g} on the diagonal is too small to solve the regression; raise it."
        )
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    solution: torch.Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution


def wider(values: torch.Tensor, classes: int) -> torch.Tensor:
    """Return `values` `(rows, C)` with columns of zeros appended until there are `classes`."""
    missing = classes - values.shape[1]
    return torch.cat([values, values.new_zeros(len(values), missing)], dim=1) if missing > 0 else values
