"""Gaussians around the means of a task's classes: a closed form, from one pass over its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from everclip.contracts import Past, Phase, Progress, Task
from everclip.data.table import Table
from everclip.distributed import gather_rows
from everclip.errors import ConfigError
from everclip.methods.selectors.base import REFERENCE, Selector
from everclip.methods.selectors.settings import GaussianSettings
from everclip.models.backbone import Backbone

WIDEST = 8192
"""Largest number of features with a full covariance, which then takes half a gigabyte in double precision."""


class Density(nn.Module):
    """One task's Gaussians: `C` means that share a covariance.

    Args:
        classes: C.
        features: F.
        full: whether the covariance is a full matrix rather than its diagonal.
    """

    means: torch.Tensor
    present: torch.Tensor
    whitening: torch.Tensor
    volume: torch.Tensor
    count: torch.Tensor
    total: torch.Tensor
    square: torch.Tensor

    def __init__(self, classes: int, features: int, full: bool) -> None:
        super().__init__()
        shape = (features, features) if full else (features,)
        self.register_buffer("means", torch.zeros(classes, features))
        self.register_buffer("present", torch.zeros(classes))
        self.register_buffer("whitening", torch.zeros(shape))
        self.register_buffer("volume", torch.zeros(()))
        # Sums during the pass, in double precision: with a large mean, x x^T would lose digits.
        self.register_buffer("count", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(classes, features, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(shape, dtype=torch.float64))

    @property
    def full(self) -> bool:
        """Whether the covariance is a full matrix."""
        return self.whitening.ndim == 2

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add features `(N, F)` of classes `(N,)` to the sums."""
        values = features.to(self.total)
        self.count.index_add_(0, labels, torch.ones_like(values[:, 0]))
        self.total.index_add_(0, labels, values)
        self.square += values.T @ values if self.full else values.square().sum(dim=0)

    def solve(self, shrinkage: float) -> None:
        """Compute means and a covariance from the sums, shrunk towards its mean variance (Ledoit and Wolf 2004, eq. 2).

        Raises:
            ConfigError: if a full covariance is singular in floating point.
        """
        self.present.copy_(self.count > 0)
        means = self.total / self.count.clamp_min(1)[:, None]
        self.means.copy_(means)
        weighted = means * self.count[:, None]
        between = weighted.T @ means if self.full else (weighted * means).sum(dim=0)
        free = (self.count.sum() - self.present.sum()).clamp_min(1)
        within = (self.square - between) / free
        variance = within.diagonal() if self.full else within
        middle = variance.clamp_min(0).mean()
        # Without variance (a single image), all directions count equally.
        middle = torch.where(middle > 1e-12 * (1 + means.square().mean()), middle, 1.0)
        if self.full:
            eye = torch.eye(len(within), dtype=within.dtype, device=within.device)
            factor, failed = torch.linalg.cholesky_ex((1 - shrinkage) * within + shrinkage * middle * eye)
            if bool(failed):
                raise ConfigError(
                    f"method.selector.shrinkage: {shrinkage:g} is too small for a full covariance of {len(eye):,} "
                    f"features from {int(self.count.sum()):,} images, which is singular; raise it, or set "
                    "covariance=diagonal."
                )
            self.whitening.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))
            self.volume.copy_(2 * factor.diagonal().log().sum())
        else:
            variance = (1 - shrinkage) * variance.clamp_min(0) + shrinkage * middle
            self.whitening.copy_(variance.rsqrt())
            self.volume.copy_(variance.log().sum())
        self.count, self.total, self.square = self.count[:0], self.total[:0], self.square[:0]

    def distance(self, features: torch.Tensor) -> torch.Tensor:
        """Return the negative log-density of the nearest class `(N,)`, per feature and without its constant.

        `(min_c (x - mean_c)^T S^-1 (x - mean_c) + log det S) / (2 F)`
        """
        if self.full:
            white, centres = features @ self.whitening.T, self.means @ self.whitening.T
        else:
            white, centres = features * self.whitening, self.means * self.whitening
        far = torch.cdist(white, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest = far.masked_fill(self.present == 0, torch.inf).min(dim=1).values
        return (nearest + self.volume) / (2 * features.shape[1])


def check_width(features: int) -> None:
    """Check that a full covariance is not too large.

    Raises:
        ConfigError: if it is; says what to choose instead.
    """
    if features > WIDEST:
        raise ConfigError(
            f"method.selector.covariance: `shared` is a matrix of {features:,} x {features:,} for each task "
            f"({8 * features**2 / 1e9:.0f} GB); the limit is {WIDEST:,} features. Choose `diagonal`, or features with "
            "fewer values (early with pool=mean-std, embedding)."
        )


class Gaussian(Selector[GaussianSettings]):
    """Gaussians per class or task on frozen features (the Mahalanobis distance of Lee et al. 2018, arXiv 1807.03888).

    Each task has its own covariance: a full matrix for all its classes, or a diagonal.
    """

    labels = True

    def __init__(self, settings: GaussianSettings, *arguments: Any, **options: Any) -> None:
        super().__init__(settings, *arguments, **options)
        self.densities = nn.ModuleDict()

    # -- learning ---------------------------------------------------------------------------------------------

    def grow_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Add the task's density; in the first task also the density of the reference images."""
        size, device = self.extractor.width(backbone), self.limits.device
        if self.reference and len(self.tasks) == 1:
            self._add(0, 1, size).to(device)
        classes = task.classes if self.settings.means == "class" else None
        self._add(len(self.tasks), len(classes or ()) or 1, size).to(device)

    def _add(self, route: int, classes: int, size: int) -> Density:
        density = Density(classes, size, self.settings.covariance == "shared")
        self.densities[str(route)] = density
        return density

    def fitting(self, task: Task | None, train: Table, position: int, past: Past) -> list[Phase]:
        """Declare one pass that gathers sums."""
        labelled = task if self.settings.means == "class" else None
        return [self.once(f"selector{REFERENCE if task is None else ''}", train, past, labelled)]

    def fit(
        self, features: torch.Tensor, columns: Mapping[str, Any], position: int, progress: Progress
    ) -> torch.Tensor | None:
        """Gather sums."""
        labels = columns.get("label")
        if labels is None:
            labels = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        device = self.limits.device
        self._density(position).add(gather_rows(features).to(device), gather_rows(labels).to(device))
        return None

    def end_phase(self, phase: Phase) -> None:
        """Compute the density or the threshold from a finished pass."""
        super().end_phase(phase)
        if phase.name in ("selector", f"selector{REFERENCE}"):
            position = -1 if phase.name.endswith(REFERENCE) else len(self.tasks) - 1
            self._density(position).solve(self.settings.shrinkage)

    # -- deciding ---------------------------------------------------------------------------------------------

    def measure_one(self, features: torch.Tensor, position: int) -> torch.Tensor:
        """Return the negative log-density `(N,)` under one task."""
        return self._density(position).distance(features)

    def _density(self, position: int) -> Density:
        density = self.densities[str(position + 1)]
        assert isinstance(density, Density)
        return density

    # -- state ------------------------------------------------------------------------------------------------

    def shape(self) -> dict[str, Any]:
        """Return the sizes of the densities, and whether each is still gathering sums."""
        return {
            route: {"classes": len(d.means), "features": d.means.shape[1], "gathering": bool(len(d.count))}
            for route, d in self.densities.items()
            if isinstance(d, Density)
        }

    def reshape(self, shape: Mapping[str, Any]) -> None:
        """Rebuild the densities."""
        self.densities.clear()
        for route, sizes in shape.items():
            density = self._add(int(route), int(sizes["classes"]), int(sizes["features"]))
            if not sizes["gathering"]:
                density.count, density.total = density.count[:0], density.total[:0]
                density.square = density.square[:0]

    def growth(self) -> int:
        """See `Selector.growth`."""
        last = self.densities[str(len(self.tasks))].state_dict()
        return sum(tensor.numel() for tensor in last.values())
