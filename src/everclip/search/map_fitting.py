"""Fit maps of vectors from pairs (Drift-Adapter, Vejendla 2025, EMNLP, arXiv 2509.23471; the kernel is ours)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from everclip.errors import DataError
from everclip.search.map_kernel import fit_kernel
from everclip.search.map_linear import best_ridge, best_rotation, ridge, rotation
from everclip.search.map_mlp import fit_mlp
from everclip.search.vector_map import Kind, VectorMap

HELD_OUT = 0.2
"""The share of the pairs that chooses penalties and stops the training of an MLP; the rest, then all, fit."""

LEAST = 8


@dataclass(frozen=True)
class Pairs:
    """Unit vectors of the same items in two spaces: `source` `(N, D)` and `target` `(N, E)`.

    Attributes:
        source_key, target_key: the keys of the two spaces.
    """

    source: torch.Tensor
    target: torch.Tensor
    source_key: str = "source"
    target_key: str = "target"

    def __post_init__(self) -> None:
        if self.source.ndim != 2 or self.target.ndim != 2 or len(self.source) != len(self.target):
            raise DataError(
                f"pairs of vectors need two arrays of as many rows; found {tuple(self.source.shape)} and "
                f"{tuple(self.target.shape)}."
            )
        if len(self.source) < LEAST:
            raise DataError(f"{len(self.source)} pairs are too few to fit a map; expected at least {LEAST}.")
        if not (self.source.isfinite().all() and self.target.isfinite().all()):
            raise DataError("a vector of the pairs is not finite (NaN or infinite); encode the sample again.")

    def __len__(self) -> int:
        return len(self.source)

    def select(self, rows: torch.Tensor) -> Pairs:
        """Return the pairs at `rows`."""
        return Pairs(self.source[rows], self.target[rows], self.source_key, self.target_key)

    def reverse(self) -> Pairs:
        """Return the pairs of the other direction: queries of the new model go into the old space."""
        return Pairs(self.target, self.source, self.target_key, self.source_key)

    def parted(self, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows that stay and the rows that are held out, each in ascending order."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        count = max(1, round(share * len(self)))
        return order[count:].sort().values, order[:count].sort().values


def fit_map(pairs: Pairs, kind: Kind, seed: int = 0, penalty: float | None = None) -> VectorMap:
    """Fit one kind of map; the same pairs and seed give the same map.

    Args:
        pairs: of images, and of texts if the map is for both.
        kind: `orthogonal`, `affine`, `mlp` or `kernel`; each one begins at the one before it, the last two at `affine`.
        seed: chooses the held-out part, and draws the hidden layer.
        penalty: fixes the penalty of an affine map (in units of `PENALTIES`); then its rank is full.
    """
    fit, held = pairs.parted(HELD_OUT, seed)
    x, y = pairs.source.double(), pairs.target.double()
    pull, centred = best_rotation(x, y, fit, held)
    settings: dict[str, float | int | bool] = {"pull": pull, "centred": centred}
    part, whole = rotation(x[fit], y[fit], pull, centred), rotation(x, y, pull, centred)
    if kind != "orthogonal":
        chosen, rank = (penalty, 1.0) if penalty is not None else best_ridge(x, y, part, fit, held)
        settings |= {"penalty": chosen, "rank": rank}
        part, whole = ridge(x[fit], y[fit], part, chosen, rank), ridge(x, y, whole, chosen, rank)
    tensors = {"weight": whole.weight.float(), "bias": whole.bias.float()}
    if kind == "mlp":
        tensors, settings["steps"] = fit_mlp(x, y, part, whole, fit, held, seed)
    elif kind == "kernel":
        more, found = fit_kernel(x, y, part, whole, fit, held)
        tensors, settings = tensors | more, settings | found
    return VectorMap(kind, pairs.source_key, pairs.target_key, tensors, settings)
