"""Fixed random expansions of unit features, as input of a ridge regression."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from everclip.data.sampling.order import generator


class Expansion(nn.Module):
    """`phi(x)`: a fixed random layer without learned parameters.

    `relu`: `max(0, W x)`, W uniform in `+-1/sqrt(d)` (RAIL, arXiv 2406.18868). `fourier`:
    `sqrt(2/D) cos(W x + b)` with W normal of variance `2 gamma` and b uniform in `[0, 2 pi)`; its inner products
    approximate the kernel `exp(-gamma |a - b|^2)` (Rahimi and Recht 2007). `none`: x.

    Args:
        kind: `relu`, `fourier` or `none`.
        inputs: d.
        width: D; ignored by `none`.
        gamma: of the kernel.
        seed: decides W and b.
    """

    matrix: torch.Tensor
    phase: torch.Tensor

    def __init__(self, kind: str, inputs: int, width: int, gamma: float, seed: int) -> None:
        super().__init__()
        self.kind = kind
        self._fine: torch.Tensor | None = None
        draw = generator("rail", seed)
        if kind == "relu":
            bound = 1 / math.sqrt(inputs)
            self.register_buffer(
                "matrix", torch.from_numpy(draw.uniform(-bound, bound, (width, inputs))).float()
            )
        elif kind == "fourier":
            scaled = math.sqrt(2 * gamma) * draw.standard_normal((width, inputs))
            self.register_buffer("matrix", torch.from_numpy(scaled).float())
            self.register_buffer("phase", torch.from_numpy(draw.uniform(0, 2 * math.pi, width)).float())

    def _apply(self, *args: Any, **kwargs: Any) -> Expansion:
        self._fine = None
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch has no types here
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._fine = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `(N, D)` float64 of features `(N, d)`."""
        x = x.double()
        if self.kind == "none":
            return x
        if self._fine is None:  # a float64 copy of the stored matrix, not part of the state
            self._fine = self.matrix.double()
        mapped = x @ self._fine.T
        if self.kind == "relu":
            return mapped.relu_()
        return mapped.add_(self.phase).cos_().mul_(math.sqrt(2 / len(self.phase)))
