"""A small MLP beside an affine map, trained on what that leaves over."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, normalize

from everclip.search.map_linear import Linear

WIDTH, BATCH, DECAY = 512, 128, 0.01
INSIDE_RATE, OUTSIDE_RATE = 1e-3, 7.5e-5
EPOCHS, PATIENCE = 120, 20
"""The most passes over the pairs, and after how many passes without progress on the held-out part training stops."""


def fit_mlp(
    x: torch.Tensor,
    y: torch.Tensor,
    part: Linear,
    whole: Linear,
    fit: torch.Tensor,
    held: torch.Tensor,
    seed: int,
) -> tuple[dict[str, torch.Tensor], int]:
    """Train `x W + b + gelu(x A + a) B` from an affine map on; B begins at zero.

    It is trained on the pairs `fit` as long as those of `held` get nearer to their targets, then anew on all pairs for
    as many steps. If no step helps there is none: on the held-out part, it is never worse than the affine map.

    Args:
        x, y: `(N, D)` and `(N, E)`.
        part, whole: the affine maps of the pairs `fit` and of all pairs.
        fit, held: rows.
        seed: draws A and the order of the pairs.

    Returns:
        `weight` W, `bias` b, `inside` A `(D, H)`, `inside_bias` a `(H,)` and `outside` B `(H, E)`, float32; and the
        number of steps.
    """
    training = _Training(x[fit], y[fit], part, seed)
    best, steps, waiting = training.cosine(x[held], y[held]), 0, 0
    for epoch in range(1, EPOCHS + 1):
        training.run(training.batches)
        found = training.cosine(x[held], y[held])
        if found > best + 1e-6:
            best, steps, waiting = found, epoch * training.batches, 0
        elif (waiting := waiting + 1) >= PATIENCE:
            break
    final = _Training(x, y, whole, seed)
    final.run(steps)
    return final.tensors(), steps


class _Training:
    def __init__(self, x: torch.Tensor, y: torch.Tensor, affine: Linear, seed: int) -> None:
        self.x, self.y = x.float(), y.float()
        self.draw = torch.Generator().manual_seed(seed)
        # Inputs have unit length, so that entries of unit variance give activations of order one.
        self.inside = torch.randn(self.x.shape[1], WIDTH, generator=self.draw).requires_grad_()
        self.inside_bias = torch.zeros(WIDTH, requires_grad=True)
        self.outside = torch.zeros(WIDTH, self.y.shape[1], requires_grad=True)
        self.weight = affine.weight.float().clone().requires_grad_()
        self.bias = affine.bias.float().clone().requires_grad_()
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [self.inside, self.inside_bias], "lr": INSIDE_RATE},
                {"params": [self.outside, self.weight, self.bias], "lr": OUTSIDE_RATE},
            ],
            weight_decay=DECAY,
        )
        self.batches = -(-len(self.x) // BATCH)
        self._order = torch.empty(0, dtype=torch.int64)

    def _of(self, x: torch.Tensor) -> torch.Tensor:
        hidden = gelu(x @ self.inside + self.inside_bias)
        return normalize(x @ self.weight + self.bias + hidden @ self.outside, dim=1)

    def cosine(self, x: torch.Tensor, y: torch.Tensor) -> float:
        with torch.no_grad():
            return float((self._of(x.float()) * y.float()).sum(dim=1).mean())

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if not len(self._order):
                self._order = torch.randperm(len(self.x), generator=self.draw)
            rows, self._order = self._order[:BATCH], self._order[BATCH:]
            loss = (1 - (self._of(self.x[rows]) * self.y[rows]).sum(dim=1)).mean()
            self.optimiser.zero_grad()
            torch.autograd.backward(loss)
            self.optimiser.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        names = ("weight", "bias", "inside", "inside_bias", "outside")
        return {name: getattr(self, name).detach() for name in names}
