"""Ridge regression in the space of features: solved from sums, or by recursion (RAIL, arXiv 2406.18868)."""

from __future__ import annotations

import torch

from everclip.methods.rail.base import Ridge, one_hot, solve_spd, wider
from everclip.methods.rail.expand import Expansion


class Sums(Ridge):
    """Sum `A = phi^T phi` and `B = phi^T Y` over all samples and solve `(A + ridge I) W = B`.

    The sums do not depend on the order of samples: any order of tasks and any batch size give the same weights, up to
    rounding and the order of columns.

    Args:
        expansion: phi.
        width: its D.
        ridge: added to the diagonal.
    """

    gram: torch.Tensor
    targets: torch.Tensor

    def __init__(self, expansion: Expansion, width: int, ridge: float) -> None:
        super().__init__(width, ridge)
        self.expansion = expansion
        self.register_buffer("gram", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("targets", torch.zeros(width, 0, dtype=torch.float64))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ridge.features`."""
        expanded: torch.Tensor = self.expansion(x)
        return expanded

    def widen(self, classes: int) -> None:
        """See `Ridge.widen`."""
        super().widen(classes)
        self.targets = wider(self.targets, classes)

    def add(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """See `Ridge.add`."""
        phi = self.features(x)
        self.gram.addmm_(phi.T, phi)
        # Only the columns that occur: a task has only a few of all classes.
        present = torch.unique(labels)
        inverse = torch.searchsorted(present, labels)
        self.targets[:, present] += phi.T @ one_hot(inverse, len(present))

    def solve(self) -> None:
        """See `Ridge.solve`."""
        self.weights = solve_spd(self.gram.clone(), self.targets, self.ridge)


class Recursive(Ridge):
    """Store the inverse `R = (A + ridge I)^-1` and the weights, and update both with every batch.

    `R <- R - R phi^T (I + phi R phi^T)^-1 phi R` and `W <- W + R phi^T (Y - phi W)` with the new R (arXiv 2406.18868).
    The paper solves its first task in one step; starting from `R = I / ridge` gives the same.

    Args:
        expansion: phi.
        width: its D.
        ridge: decides the initial R.
    """

    inverse: torch.Tensor

    def __init__(self, expansion: Expansion, width: int, ridge: float) -> None:
        super().__init__(width, ridge)
        self.expansion = expansion
        self.register_buffer("inverse", torch.eye(width, dtype=torch.float64) / ridge)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ridge.features`."""
        expanded: torch.Tensor = self.expansion(x)
        return expanded

    def add(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """See `Ridge.add`."""
        if not len(x):
            return
        phi = self.features(x)
        spread = self.inverse @ phi.T
        inner = phi @ spread
        # The gain with the new R: R' phi^T = R phi^T (I + phi R phi^T)^-1.
        gain = solve_spd((inner + inner.T) / 2, spread.T.contiguous(), 1.0).T
        self.inverse.addmm_(gain, spread.T, alpha=-1)
        self.weights.addmm_(gain, one_hot(labels, self.classes) - phi @ self.weights)
