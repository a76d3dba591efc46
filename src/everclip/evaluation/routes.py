"""Count the routes that the images of a set took, and the experts that were chosen for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from everclip.contracts import Features
from everclip.evaluation.results import Experts

ROUTE, EXPERTS = "route", "experts"
"""The features that hold routes and experts, as integers stored as floats."""


def count_routes(features: Features, names: Sequence[str]) -> dict[str, int]:
    """Return how many images took each route.

    Args:
        features: with `route` `(N,)`, indices into `names`; without it, the result is empty.
        names: the names of the routes; routes of equal names are counted together.

    Raises:
        ValueError: if a route has no name.
    """
    if ROUTE not in features:
        return {}
    routes = features[ROUTE].flatten().to(torch.int64)
    if len(routes) and not 0 <= int(routes.min()) <= int(routes.max()) < len(names):
        raise ValueError(
            f"feature `route` holds {sorted(set(routes.tolist()))}; there are {len(names)} routes"
        )
    counts: dict[str, int] = {}
    for name, count in zip(names, torch.bincount(routes, minlength=len(names)).tolist(), strict=True):
        counts[name] = counts.get(name, 0) + count
    return counts


def count_experts(features: Features, places: Sequence[str]) -> Experts | None:
    """Return how often each place chose each expert; `None` if the features hold no choices.

    Args:
        features: with `experts` `(N, B * k)` or `(N, B, k)`: the k experts chosen at each of B places; -1 means none.
        places: the names of the B places.

    Raises:
        ValueError: if the number of choices is not a multiple of the number of places.
    """
    if EXPERTS not in features or not places:
        return None
    chosen = features[EXPERTS].flatten(1).to(torch.int64)
    if chosen.shape[1] % len(places):
        raise ValueError(
            f"feature `experts` has {chosen.shape[1]} choices per image for {len(places)} places"
        )
    by_place = chosen.view(len(chosen), len(places), -1)
    count = int(chosen.max()) + 1 if chosen.numel() else 0
    counts = [
        torch.bincount(by_place[:, i].flatten() + 1, minlength=count + 1)[1:] for i in range(len(places))
    ]
    return Experts(places=list(places), counts=[row.tolist() for row in counts])
