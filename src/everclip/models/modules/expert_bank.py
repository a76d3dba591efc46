"""The experts of one block: bottlenecks in a few large tensors, computed without a host-device synchronisation.

An expert is `s (W_up act(W_down h + b_down) + b_up)` (MoE-Adapters, Yu et al. 2024, arXiv 2403.11549, equation 4). The
`k` chosen experts of a sample are computed as one bottleneck of `k` times the width, so that their gated sum is one
product, accumulated in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import nn

from everclip.models.modules.base import ACTIVATIONS, first_projection
from everclip.models.modules.settings import ExpertsSettings

TENSORS = ("down", "down_bias", "up", "up_bias")
KEPT = "kept_"
"""Prefix of the tensors of frozen experts."""

_ACTIVATIONS = {name: kind() for name, kind in ACTIVATIONS.items()}


class Bank(nn.Module):
    """E bottlenecks, some of them permanently frozen.

    Parameters (the experts that still learn, in ascending order): `down` `(E', r, W)`, `down_bias` `(E', r)`, `up`
    `(E', r, W)` (transposed: one row per hidden unit), `up_bias` `(E', W)`. The frozen experts are in buffers
    `kept_down`...: no optimiser, weight decay or merging can reach them.

    Args:
        width: W.
        settings: r, number, activation, dropout and scale.
        draw: expert -> generator for its first projection; the second starts at zero.
        like: decides device and type.
    """

    positions: torch.Tensor
    down: nn.Parameter
    down_bias: nn.Parameter
    up: nn.Parameter
    up_bias: nn.Parameter

    def __init__(
        self,
        width: int,
        settings: ExpertsSettings,
        draw: Callable[[int], torch.Generator],
        like: torch.Tensor,
    ) -> None:
        super().__init__()
        self.width, self.settings, self._draw = width, settings, draw
        self.count, self.frozen = 0, tuple[int, ...]()
        self._put(self._new(range(settings.count), like), settings.count, ())

    def extra_repr(self) -> str:
        """Return what distinguishes this module in `str`."""
        return f"count={self.count}, frozen={list(self.frozen)}"

    # -- shape ------------------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """The number of experts that still learn."""
        return self.count - len(self.frozen)

    def whole(self, name: str) -> torch.Tensor:
        """Return one of `TENSORS` for all experts `(E, ...)`, without gradient."""
        live, kept = self.get_parameter(name).detach(), self.get_buffer(KEPT + name)
        return self._rows_of(live, kept, torch.arange(self.count, device=live.device))

    def freeze(self, experts: Collection[int]) -> None:
        """Freeze experts permanently."""
        frozen = sorted({*self.frozen, *experts})
        if tuple(frozen) != self.frozen:
            self._put({name: self.whole(name) for name in TENSORS}, self.count, frozen)

    def grow(self, count: int) -> None:
        """Add experts until there are `count`; existing experts keep their values."""
        if count > self.count:
            new = self._new(range(self.count, count), self.down)
            joined = {name: torch.cat([self.whole(name), new[name]]) for name in TENSORS}
            self._put(joined, count, self.frozen)

    def reshape(self, count: int, frozen: Collection[int]) -> None:
        """Take the shape of a checkpoint; its tensors are loaded next."""
        self._put(self._new(range(count), self.down), count, sorted(frozen))

    def _new(self, experts: Collection[int], like: torch.Tensor) -> dict[str, torch.Tensor]:
        rank, width = self.settings.width, self.width
        down = [first_projection(rank, width, self._draw(e)) for e in experts]
        return {
            "down": torch.stack(down).to(like.device, like.dtype),
            "down_bias": like.new_zeros(len(experts), rank),
            "up": like.new_zeros(len(experts), rank, width),
            "up_bias": like.new_zeros(len(experts), width),
        }

    def _put(self, whole: dict[str, torch.Tensor], count: int, frozen: Collection[int]) -> None:
        self.count, self.frozen = count, tuple(frozen)
        live = [e for e in range(count) if e not in self.frozen]
        for name, tensor in whole.items():
            setattr(self, name, nn.Parameter(tensor.detach()[live].clone()))
            self.register_buffer(KEPT + name, tensor.detach()[list(self.frozen)].clone())
        # The index of each expert among those that learn; for the frozen ones -1 - index among these.
        positions = [live.index(e) if e in live else -1 - self.frozen.index(e) for e in range(count)]
        self.register_buffer("positions", torch.tensor(positions, device=self.down.device), persistent=False)

    # -- computing --------------------------------------------------------------------------------------------

    def rows(self, name: str, chosen: torch.Tensor) -> torch.Tensor:
        """Return one of `TENSORS` for chosen experts `(B, k)`: `(B, k, ...)`, with gradient for those that learn."""
        rows = self._rows_of(self.get_parameter(name), self.get_buffer(KEPT + name), chosen.flatten())
        return rows.view(*chosen.shape, *rows.shape[1:])

    def _rows_of(self, live: torch.Tensor, kept: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        if not len(kept):
            return live.index_select(0, experts)
        positions = self.positions[experts]
        frozen = kept.index_select(0, (-1 - positions).clamp_min(0))
        if not len(live):
            return frozen
        learning = (positions >= 0).view(-1, *[1] * (live.dim() - 1))
        return torch.where(learning, live.index_select(0, positions.clamp_min(0)), frozen)

    def grouped(self, tokens: torch.Tensor, chosen: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """Return the gated sum of the chosen experts of each sample.

        Args:
            tokens: `(N, L, W)`.
            chosen: experts `(N, k)`, or `(1, k)`: the same for all samples.
            gates: their weights, same shape.

        Returns:
            `(N, L, W)`, in float32 or higher precision.
        """
        batch = len(chosen)
        down, up = (self.rows(name, chosen).flatten(1, 2) for name in ("down", "up"))
        bias = self.rows("down_bias", chosen).flatten(1)
        if batch == 1:
            hidden = F.linear(tokens, down[0], bias[0])
        else:
            hidden = torch.baddbmm(bias[:, None], tokens, down.transpose(1, 2))
        hidden = self._activated(hidden, gates)
        mixed = hidden @ up[0] if batch == 1 else torch.bmm(hidden, up)
        offset = (gates[..., None] * self.rows("up_bias", chosen)).sum(dim=1)
        return _at_least_float32(mixed) + self.settings.scale * offset[:, None]

    def dense(self, tokens: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """Return the same sum as `grouped`, computing every expert for every sample.

        Args:
            tokens: `(N, L, W)`.
            gates: `(N, E)` or `(1, E)`, zero for experts that were not chosen.
        """
        every = torch.arange(self.count, device=tokens.device)[None]
        down, up = (self.rows(name, every).flatten(0, 2) for name in ("down", "up"))
        hidden = F.linear(tokens, down, self.rows("down_bias", every).flatten())
        offset = gates @ self.rows("up_bias", every)[0].to(gates.dtype)
        mixed = self._activated(hidden, gates) @ up
        return _at_least_float32(mixed) + self.settings.scale * offset[:, None]

    def _activated(self, hidden: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """Return the hidden units `(N, L, k * r)`, multiplied by gates and scale."""
        hidden = F.dropout(
            _ACTIVATIONS[self.settings.activation](hidden), self.settings.dropout, self.training
        )
        factor = (self.settings.scale * gates).repeat_interleave(self.settings.width, dim=1)
        return hidden * factor[:, None].to(hidden.dtype)


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
