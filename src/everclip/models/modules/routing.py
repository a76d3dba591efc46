"""Routers choose and weigh the experts of a block for each sample; a `Pass` holds the routing of one forward pass.

`z = c W_g`, in training `z + eps * (softplus(c W_n) + 0.01)`; the gate is the softmax over the k largest (Shazeer et
al. 2017, arXiv 1701.06538, equations 3 to 5, as MoE-Adapters uses them, arXiv 2403.11549).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from everclip.distributed import concatenate
from everclip.models.modules.towers import Side

LEAST = 1e-2
"""Smallest standard deviation of the noise."""


class Router(nn.Module):
    """One task's router of one block.

    Parameters:
        gate: `(W, E)`, zero at the start.
        noise: `(W, E)`, zero at the start; the spread of the noise in training.

    Args:
        width: W.
        count: E; the router cannot choose experts that are added later.
        noisy: whether to add noise in training.
        like: decides device and type.
    """

    def __init__(self, width: int, count: int, noisy: bool, like: torch.Tensor) -> None:
        super().__init__()
        self.count = count
        self.gate = nn.Parameter(like.new_zeros(width, count))
        self.noise = nn.Parameter(like.new_zeros(width, count)) if noisy else None

    def forward(self, token: torch.Tensor, draw: torch.Tensor | None = None) -> Logits:
        """Return logits of tokens `(N, W)`; noisy logits with a standard normal `draw` `(N, >= E)`."""
        clean = token @ self.gate
        if draw is None or self.noise is None:
            return Logits(clean, clean, None)
        spread = F.softplus(token @ self.noise) + LEAST
        return Logits(clean + draw[:, : self.count].to(clean) * spread, clean, spread)


@dataclass(frozen=True)
class Logits:
    """The output of a router `(N, E)`: logits with noise, logits without, and the standard deviation of the noise."""

    noisy: torch.Tensor
    clean: torch.Tensor
    spread: torch.Tensor | None

    def top(self, active: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the `active` best experts `(N, k)`, the first in a tie, and their gates, which sum to one."""
        # `topk` breaks ties arbitrarily, and differently for longer rows (of routers of later tasks).
        values, order = self.noisy.sort(dim=1, descending=True, stable=True)
        return order[:, :active], values[:, :active].softmax(dim=1)

    def scatter(self, chosen: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """Return gates `(N, k)` as `(N, E)` with zeros elsewhere."""
        return torch.zeros_like(self.noisy).scatter(1, chosen, gates)


def smooth_load(logits: Logits, active: int) -> torch.Tensor:
    """Return the load of each expert `(E,)`: the expected number of its samples under a new draw of its noise.

    `sum_n P(expert in the top k)` (arXiv 1701.06538, equations 8 to 10): the normal distribution function of the clean
    logit against the k-th best of the others. Without noise, or with every expert active, it is a plain count.
    """
    noisy = logits.noisy
    if logits.spread is None or active >= noisy.shape[1]:
        best, _ = logits.top(min(active, noisy.shape[1]))
        return torch.zeros_like(noisy).scatter(1, best, 1.0).sum(dim=0)
    best = noisy.topk(active + 1, dim=1).values
    inside, outside = best[:, active, None], best[:, active - 1, None]
    other = torch.where(noisy > inside, inside, outside)
    likely: torch.Tensor = torch.special.ndtr((logits.clean - other) / logits.spread)
    return likely.sum(dim=0)


def unevenness(values: torch.Tensor) -> torch.Tensor:
    """Return the squared coefficient of variation of `(E,)`: unbiased variance over the squared mean."""
    if len(values) < 2:
        return values.new_zeros(())
    return values.var() / (values.mean() ** 2 + 1e-10)


def imbalance(logits: Logits, gates: torch.Tensor, active: int, shared: bool) -> torch.Tensor:
    """Return `CV^2(importance) + CV^2(load)` over the global batch (arXiv 1701.06538, section 4).

    Args:
        logits: of the samples of this process.
        gates: `(N, E)`.
        active: k.
        shared: whether all processes have the same samples.
    """
    importance, load = gates.sum(dim=0), smooth_load(logits, active)
    if not shared:
        both = concatenate(torch.stack([importance, load])[None], gradient=True).sum(dim=0)
        importance, load = both.unbind()
    return unevenness(importance) + unevenness(load)


@dataclass
class Pass:
    """The routing of one forward pass through a tower, and what the pass collects.

    Attributes:
        routers: names of the available routers; route 1 + i uses the i-th.
        route: of the whole batch, or of each sample `(N,)` int64; 0 is the model without experts.
        decide: maps the tokens `(N, L, W)` that enter the first block with experts to `route`, if it is not known
            before.
        noise: standard normal draws `(N, blocks, E)` for training.
        same: whether the first token, and so the gate, is the same for all samples (a causal tower in evaluation).
        shared: whether all processes have the same samples.
        counts: whether to count the samples of each expert in training, and to collect `chosen` in evaluation.
        balance: whether to collect `imbalances`.
        chosen: the chosen experts `(N, k)` of each block, -1 for none; collected in evaluation.
        imbalances: one scalar per block.
        inputs: number of a block -> the input of its experts, until they have run.
    """

    routers: tuple[str, ...]
    route: int | torch.Tensor = 1
    decide: Callable[[torch.Tensor], torch.Tensor] | None = None
    noise: torch.Tensor | None = None
    same: bool = False
    shared: bool = False
    counts: bool = True
    balance: bool = False
    chosen: list[torch.Tensor] = field(default_factory=list)
    imbalances: list[torch.Tensor] = field(default_factory=list)
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)


_PASSES: ContextVar[dict[Side, Pass]] = ContextVar("everclip_passes", default={})  # noqa: B039 (never changed)


@contextmanager
def passing(passes: dict[Side, Pass]) -> Iterator[None]:
    """Set the routing of each tower inside the context, for this thread; without it, experts do nothing."""
    token = _PASSES.set(passes)
    try:
        yield
    finally:
        _PASSES.reset(token)


def current_pass(side: Side) -> Pass | None:
    """Return the routing of a tower; `None` outside `passing`."""
    return _PASSES.get().get(side)


def mixed_logits(routers: list[Router], token: torch.Tensor, route: torch.Tensor) -> Logits:
    """Return each sample's logits `(N, E)` from the router of its route `(N,)`; from the first router for route 0."""
    most = max(router.count for router in routers)
    every = [F.pad(r(token).clean, (0, most - r.count), value=-torch.inf) for r in routers]
    index = (route - 1).clamp_min(0)[:, None, None].expand(-1, 1, most)
    clean = torch.stack(every, dim=1).gather(1, index)[:, 0]
    return Logits(clean, clean, None)
