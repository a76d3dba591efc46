"""What everything that grows inside a CLIP shares: where it draws its start from, and its hooks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from torch import nn

from everclip.data.sampling.order import key_of


@dataclass(frozen=True)
class Context:
    """What growing may need besides the settings.

    Attributes:
        seed: decides initial values.
        tokenise: texts to token ids `(N, L)`, for modules that start from words.
    """

    seed: int = 0
    tokenise: Callable[[list[str]], torch.Tensor] | None = None


def generator(*parts: object) -> torch.Generator:
    """Return a generator keyed by `parts`: initial values depend on the place, never on what was drawn before."""
    draw = torch.Generator()
    draw.manual_seed(key_of("module", *parts) % 2**63)
    return draw


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "quick-gelu": QuickGELU}
"""What may stand between two small projections."""


def uniform(rows: int, columns: int, bound: float, draw: torch.Generator) -> torch.Tensor:
    """Return `(rows, columns)`, uniform in `+-bound`."""
    return (2 * torch.rand(rows, columns, generator=draw) - 1) * bound


def first_projection(rows: int, columns: int, draw: torch.Generator) -> torch.Tensor:
    """Return `(rows, columns)` as the references draw a first projection: kaiming uniform with a = sqrt(5)."""
    return uniform(rows, columns, 1 / math.sqrt(columns), draw)


class Hooked(nn.Module):
    """A module that works through hooks on others, and can take them off again.

    Hooks are bound methods: a deep copy of the model (a teacher) then calls the copied module, not this one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handles: list[Any] = []

    def unhook(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
