"""Ridge regression in the space of samples: a Gaussian kernel over the features of all samples (RAIL's dual form)."""

from __future__ import annotations

import torch

from everclip.errors import ConfigError
from everclip.methods.rail.base import Ridge, one_hot, solve_spd


class Dual(Ridge):
    """Store all features with their classes and solve `(K + ridge I) alpha = Y`, `K = exp(-gamma |a - b|^2)`.

    Memory grows with every sample, time with the cube of their number (arXiv 2406.18868).

    Args:
        inputs: width of the features.
        stored: initial number of rows of the buffers.
        ridge: added to the diagonal.
        gamma: of the kernel.
        limit: largest number of stored samples.
    """

    samples: torch.Tensor
    labels: torch.Tensor

    def __init__(self, inputs: int, stored: int, ridge: float, gamma: float, limit: int) -> None:
        super().__init__(0, ridge)
        self.gamma, self.limit = gamma, limit
        self.register_buffer("samples", torch.zeros(stored, inputs))
        self.register_buffer("labels", torch.zeros(stored, dtype=torch.int64))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ridge.features`: the kernel with the samples of the last solution."""
        solved = self.samples[: len(self.weights)].double()
        return gaussian_kernel(x.double(), solved, self.gamma)

    def add(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """See `Ridge.add`.

        Raises:
            ConfigError: if there would be more than `limit` samples.
        """
        self.check_limit(len(x))
        self.samples = torch.cat([self.samples, x.float()])
        self.labels = torch.cat([self.labels, labels])

    def check_limit(self, more: int) -> None:
        """Check that more samples do not exceed `limit`.

        Raises:
            ConfigError: if they do; says what to do instead.
        """
        total = len(self.samples) + more
        if total > self.limit:
            raise ConfigError(
                f"method.limit: the dual form stores every sample, and {total:,} would exceed {self.limit:,}. Raise it "
                f"(solving takes {8 * total**2 / 1e9:.1f} GB), or use method.form=primal with "
                "method.expansion=fourier, whose memory is bounded."
            )

    def solve(self) -> None:
        """See `Ridge.solve`."""
        x = self.samples.double()
        self.weights = solve_spd(
            gaussian_kernel(x, x, self.gamma), one_hot(self.labels, self.classes), self.ridge
        )

    def shape(self) -> dict[str, int]:
        """See `Ridge.shape`."""
        return {**super().shape(), "stored": len(self.samples), "solved": len(self.weights)}


def gaussian_kernel(a: torch.Tensor, b: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return `exp(-gamma |a - b|^2)` `(N, M)` of rows `(N, d)` and `(M, d)`."""
    # In place: for all pairs of samples, this is by far the largest tensor.
    squares = (a @ b.T).mul_(-2).add_((a**2).sum(dim=1)[:, None]).add_((b**2).sum(dim=1))
    return squares.clamp_(min=0).mul_(-gamma).exp_()
