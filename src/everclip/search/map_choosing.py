"""How good is a map of vectors? Recall kept against vectors that the new model itself made, and a choice by it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from everclip.errors import DataError
from everclip.evaluation.statistics import bootstrap_mean
from everclip.search.map_fitting import Pairs, fit_map
from everclip.search.vector_map import KINDS, Kind, VectorMap

Direction = Literal["stored", "queries"]
State = Literal["pass", "fail", "cannot tell"]

AT = 10
LIMIT = 0.9
"""The least recall kept with which a map may serve."""

TEST = 0.25
"""The share of the pairs that measures the kinds; the chosen one is then fitted on all pairs."""

LEAST_QUERIES = 50
"""With fewer queries, an interval of resampled queries is too narrow."""


@dataclass(frozen=True)
class Kept:
    """The share of the true nearest items that a search with mapped vectors finds, over a set of queries.

    Attributes:
        value, low, high: mean over queries, and its 95 % bootstrap interval.
        at: number of nearest items per query.
        queries: number of queries.
        pool: number of items they choose from. In a larger pool the nearest items lie closer together, so that a map
            keeps fewer of them.
    """

    value: float
    low: float
    high: float
    at: int
    queries: int
    pool: int


@dataclass(frozen=True)
class Judged:
    """Whether a map may serve: like a gate of a store's update, it passes, fails, or cannot tell."""

    state: State
    kept: Kept
    limit: float
    reason: str


@dataclass(frozen=True)
class Tried:
    """One kind of map in a choice."""

    kind: Kind
    kept: Kept
    seconds: float


@dataclass(frozen=True)
class Chosen:
    """The map with the largest recall kept, fitted on all pairs, and what was measured of each kind."""

    map: VectorMap
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class Searched:
    """Queries `(Q, D)` and the vectors of the items `(N, D)` that they are compared with."""

    queries: torch.Tensor
    items: torch.Tensor

    def nearest(self, at: int, own: torch.Tensor | None) -> torch.Tensor:
        """Return the rows `(Q, at)` of the nearest items; `own` `(Q,)` is an item that each query leaves out."""
        rows = []
        for start in range(0, len(self.queries), 1024):
            cosines = self.queries[start : start + 1024].float() @ self.items.float().T
            if own is not None:
                mine = own[start : start + 1024]
                cosines[torch.arange(len(mine)), mine] = -math.inf
            rows.append(cosines.topk(at, dim=1).indices)
        return torch.cat(rows)


def shares_kept(
    found: Searched, truth: Searched, at: int = AT, own: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `| nearest(found) and nearest(truth) | / at` of each query `(Q,)`, float64.

    Args:
        found: the search with mapped items, or with mapped queries.
        truth: the same queries and items as the new model encodes them.
        at: the number of nearest items.
        own: `(Q,)` an item that a query leaves out: itself, if the queries are items.

    Raises:
        DataError: if there are no queries, or too few items.
    """
    if not len(found.queries) or len(found.items) <= at:
        raise DataError(
            f"recall among the {at} nearest needs queries and more than {at} items; there are "
            f"{len(found.queries)} queries and {len(found.items)} items."
        )
    both = found.nearest(at, own), truth.nearest(at, own)
    return (both[0][:, :, None] == both[1][:, None, :]).any(dim=2).double().mean(dim=1)


def kept(
    found: Searched,
    truth: Searched,
    at: int = AT,
    seed: int = 0,
    own: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> Kept:
    """Return the mean of `shares_kept` with its interval.

    Args:
        found, truth, at, own: see `shares_kept`.
        seed: of the bootstrap.
        groups: `(Q,)` the image of each query, if several texts ask for one image; images are then resampled.
    """
    shares = shares_kept(found, truth, at, own)
    interval = bootstrap_mean(shares.numpy(), seed, groups=None if groups is None else groups.numpy())
    return Kept(float(shares.mean()), interval.low, interval.high, at, len(shares), len(found.items))


def measure(
    a_map: VectorMap,
    images: Pairs,
    queries: torch.Tensor | None = None,
    direction: Direction = "stored",
    at: int = AT,
    seed: int = 0,
    groups: torch.Tensor | None = None,
) -> Kept:
    """Measure a map on images that it was not fitted on.

    Args:
        a_map: from the old space to the new one; of `queries`, from the new one to the old one.
        images: the same images in the old (`source`) and in the new space (`target`).
        queries: `(Q, E)` of the new space, such as texts; default: each image asks for the others.
        direction: whether stored vectors are mapped, or queries.
        at: number of nearest images.
        seed: of the bootstrap.
        groups: see `kept`.

    Raises:
        ConfigError: if the map leads between other spaces.
        DataError: if there are too few images.
    """
    own = torch.arange(len(images)) if queries is None else None
    asked = images.target if queries is None else queries
    truth = Searched(asked, images.target)
    if direction == "stored":
        a_map.require(images.source_key, images.target_key)
        return kept(Searched(asked, a_map(images.source)), truth, at, seed, own, groups)
    a_map.require(images.target_key, images.source_key)
    return kept(Searched(a_map(asked), images.source), truth, at, seed, own, groups)


def judge(found: Kept, limit: float = LIMIT) -> Judged:
    """Say whether a map keeps enough: its interval is above the limit, below it (fail), or holds it (cannot tell)."""
    state: State = "cannot tell"
    needed = ""
    if found.queries < LEAST_QUERIES:
        needed = f"; so few queries decide nothing, at least {LEAST_QUERIES} do"
    elif found.low >= limit:
        state = "pass"
    elif found.high < limit:
        state = "fail"
    elif (distance := abs(found.value - limit)) > 0:
        factor = ((found.high - found.low) / 2 / distance) ** 2
        if 1 < factor < 100:
            needed = f"; about {math.ceil((factor - 1) * found.queries):,} more queries would decide"
    reason = (
        f"recall@{found.at} kept {found.value:.3f} ({found.low:.3f} to {found.high:.3f}) of {found.queries:,} queries "
        f"among {found.pool:,} images; at least {limit:g} expected{needed}"
    )
    return Judged(state, found, limit, reason)


def choose_map(
    images: Pairs,
    texts: Pairs | None = None,
    direction: Direction = "stored",
    kinds: Sequence[Kind] = KINDS,
    at: int = AT,
    seed: int = 0,
) -> Chosen:
    """Fit every kind, measure each on pairs that were held out, and fit the best one on all pairs.

    Args:
        images: a sample of images in the old (`source`) and in the new space (`target`).
        texts: a sample of texts in both spaces: they are the queries, and a map of queries is also fitted on them.
        direction: whether stored vectors are mapped into the new space, or queries into the old one.
        kinds: to try; of equal ones, the first is taken.
        at: number of nearest images.
        seed: chooses the held-out part; enters every fit.
    """
    fit, test = images.parted(TEST, seed)
    asked = None if texts is None else texts.parted(TEST, seed)
    at = min(at, max(1, (len(test) - 1) // 2))
    queries = None if texts is None or asked is None else texts.target[asked[1]]
    tried = []
    for kind in kinds:
        start = time.perf_counter()
        part = _joined(
            images.select(fit), None if texts is None or asked is None else texts.select(asked[0]), direction
        )
        found = fit_map(part, kind, seed)
        seconds = time.perf_counter() - start
        tried.append(Tried(kind, measure(found, images.select(test), queries, direction, at, seed), seconds))
    best = max(tried, key=lambda one: one.kept.value).kind
    return Chosen(fit_map(_joined(images, texts, direction), best, seed), tuple(tried))


def _joined(images: Pairs, texts: Pairs | None, direction: Direction) -> Pairs:
    """Return the pairs to fit on: what is mapped. Stored vectors are images, queries may be both."""
    if direction == "stored":
        return images
    if texts is None:
        return images.reverse()
    both = Pairs(
        torch.cat([images.source, texts.source]),
        torch.cat([images.target, texts.target]),
        images.source_key,
        images.target_key,
    )
    return both.reverse()
