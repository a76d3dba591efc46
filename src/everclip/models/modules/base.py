"""The common base of modules that grow inside a CLIP: initial values and hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from torch import nn

from everclip.data.sampling.order import key_of
from everclip.models.modules.towers import Side, Tower


@dataclass(frozen=True)
class Context:
    """What inserting a module needs besides its settings.

    Attributes:
        seed: decides initial values.
        tokenise: texts to token ids `(N, L)`, for modules that are initialised from words.
        towers: side -> tower, of all towers that the module grows in; it may join them.
    """

    seed: int = 0
    tokenise: Callable[[list[str]], torch.Tensor] | None = None
    towers: Mapping[Side, Tower] = field(default_factory=dict)


def generator(*parts: object) -> torch.Generator:
    """Return a generator keyed by `parts`: initial values depend on the key alone, not on earlier draws."""
    draw = torch.Generator()
    draw.manual_seed(key_of("module", *parts) % 2**63)
    return draw


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "quick-gelu": QuickGELU}
"""Name in the settings -> activation between two projections."""


def uniform(rows: int, columns: int, bound: float, draw: torch.Generator) -> torch.Tensor:
    """Return `(rows, columns)`, uniform in `+-bound`."""
    return (2 * torch.rand(rows, columns, generator=draw) - 1) * bound


def first_projection(rows: int, columns: int, draw: torch.Generator) -> torch.Tensor:
    """Return `(rows, columns)` as the reference code initialises a first projection: Kaiming uniform, a = sqrt(5)."""
    return uniform(rows, columns, 1 / math.sqrt(columns), draw)


class Hooked(nn.Module):
    """A module that works through hooks on other modules, and can remove them.

    Hooks are bound methods, so a deep copy of the model (a teacher) calls the copied module, not this one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handles: list[Any] = []

    def unhook(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
