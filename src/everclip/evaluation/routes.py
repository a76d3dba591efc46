"""Which way pictures went: how many of a set took each route, and which experts they were handed to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from everclip.contracts import Features
from everclip.evaluation.results import Experts

ROUTE, EXPERTS = "route", "experts"
"""The features that say it; both hold integers as floats."""


def count_routes(features: Features, names: Sequence[str]) -> dict[str, int]:
    """Return how many pictures took each route.

    Args:
        features: `route` `(N,)`, the index into `names`; without it nothing is counted.
        names: of the routes; one that occurs twice counts together.

    Raises:
        ValueError: if a picture took a route that has no name.
    """
    if ROUTE not in features:
        return {}
    taken = features[ROUTE].flatten().to(torch.int64)
    if len(taken) and not 0 <= int(taken.min()) <= int(taken.max()) < len(names):
        raise ValueError(
            f"feature `route` holds {sorted(set(taken.tolist()))}; there are {len(names)} routes"
        )
    counts: dict[str, int] = {}
    for name, count in zip(names, torch.bincount(taken, minlength=len(names)).tolist(), strict=True):
        counts[name] = counts.get(name, 0) + count
    return counts


def count_experts(features: Features, places: Sequence[str]) -> Experts | None:
    """Return how often each place chose each expert; `None` where nothing is known.

    Args:
        features: `experts` `(N, B * k)` or `(N, B, k)`, the k experts that each of B places chose; -1 for none.
        places: the names of the B places.

    Raises:
        ValueError: if there are not equally many choices for each place.
    """
    if EXPERTS not in features or not places:
        return None
    chosen = features[EXPERTS].flatten(1).to(torch.int64)
    if chosen.shape[1] % len(places):
        raise ValueError(
            f"feature `experts` has {chosen.shape[1]} choices per picture for {len(places)} places"
        )
    by_place = chosen.view(len(chosen), len(places), -1)
    count = int(chosen.max()) + 1 if chosen.numel() else 0
    found = [
        torch.bincount(by_place[:, i].flatten() + 1, minlength=count + 1)[1:] for i in range(len(places))
    ]
    return Experts(places=list(places), counts=[row.tolist() for row in found])
