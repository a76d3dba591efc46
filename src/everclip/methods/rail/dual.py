"""Ridge regression in the space of samples: a Gaussian kernel over every feature seen (RAIL's dual form)."""

from __future__ import annotations

import torch

from everclip.errors import ConfigError
from everclip.methods.rail.base import Ridge, one_hot, solve_spd


class Dual(Ridge):
    """Keeps every feature with its class and solves `(K + ridge I) alpha = Y`, `K = exp(-gamma |a - b|^2)`.

    Memory grows with every sample, time with the cube of their number (arXiv 2406.18868).

    Args:
        inputs: width of the features.
        stored: how many rows the buffers begin with.
        ridge: added to the diagonal.
        gamma: of the kernel.
        limit: most samples that are kept.
    """

    samples: torch.Tensor
    labels: torch.Tensor

    def __init__(self, inputs: int, stored: int, ridge: float, gamma: float, limit: int) -> None:
        super().__init__(0, ridge)
        self.gamma, self.limit = gamma, limit
        self.register_buffer("samples", torch.zeros(stored, inputs))
        self.register_buffer("labels", torch.zeros(stored, dtype=torch.int64))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ridge.features`: the kernel with the samples that the weights were solved for."""
        known = self.samples[: len(self.weights)].double()
        return _kernel(x.double(), known, self.gamma)

    def add(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """See `Ridge.add`.

        Raises:
            ConfigError: if more than `limit` samples would be kept.
        """
        self.require_room(len(x))
        self.samples = torch.cat([self.samples, x.float()])
        self.labels = torch.cat([self.labels, labels])

    def require_room(self, more: int) -> None:
        """Refuse samples that would exceed `limit`.

        Raises:
            ConfigError: with what to do instead.
        """
        wanted = len(self.samples) + more
        if wanted > self.limit:
            raise ConfigError(
                f"method.limit: the dual form keeps every sample, and {wanted:,} would exceed {self.limit:,}. Raise it "
                f"(solving takes {8 * wanted**2 / 1e9:.1f} GB), or take method.form=primal with "
                "method.expansion=fourier, which stays bounded."
            )

    def solve(self) -> None:
        """See `Ridge.solve`."""
        known = self.samples.double()
        self.weights = solve_spd(
            _kernel(known, known, self.gamma), one_hot(self.labels, self.classes), self.ridge
        )

    def shape(self) -> dict[str, int]:
        """See `Ridge.shape`."""
        return {**super().shape(), "stored": len(self.samples), "solved": len(self.weights)}


def _kernel(a: torch.Tensor, b: torch.Tensor, gamma: float) -> torch.Tensor:
    # In place: of all samples with each other this is by far the largest tensor there is.
    squares = (a @ b.T).mul_(-2).add_((a**2).sum(dim=1)[:, None]).add_((b**2).sum(dim=1))
    return squares.clamp_(min=0).mul_(-gamma).exp_()
