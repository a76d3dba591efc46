"""The nearest items of queries, block by block, and what they say about hubs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from everclip.evaluation.representation import unit_rows

NEAREST = 10
"""Results per query that are compared and counted."""

_BLOCK = 512  # queries whose scores are in memory at a time
_SPARE = 8  # more results than asked for, so that most ties are seen whole


def nearest(queries: Tensor, gallery: Tensor, k: int = NEAREST) -> Tensor:
    """Return the k items of highest cosine per query, best first; equal cosines by ascending position.

    Args:
        queries: `(Q, D)`, rows of any norm above 0.
        gallery: `(G, D)`, G >= 1.
        k: at most G are returned.

    Returns:
        `(Q, min(k, G))` int64 positions in the gallery.

    Raises:
        ValueError: if a feature is not finite or a row is zero.
    """
    units = unit_rows("nearest", queries, gallery)
    if units is None:
        raise ValueError("a query or an item is zero, or there is none")
    asked, items = units
    k = min(k, len(items))
    # Summed in float64 and rounded: equal items get equal cosines in every block.
    blocks = (asked[start : start + _BLOCK] @ items.T for start in range(0, len(asked), _BLOCK))
    return torch.cat([_first(cosines, k) for cosines in blocks])


def _first(cosines: Tensor, k: int) -> Tensor:
    """Return the positions `(Q, k)` of the largest cosines, best first; equal ones by ascending position."""
    scores = cosines.float()
    wide = min(k + _SPARE, scores.shape[1])
    values, places = scores.topk(wide, dim=1)
    # `topk` leaves the order of ties open. Sort by position, then by score, which keeps the order of equal scores.
    places, order = places.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    chosen = places.gather(1, order)[:, :k]
    # Where the last one taken ties with the last one seen, more equal items may be outside.
    open_ = (
        (values[:, k - 1] == values[:, -1]) if wide < scores.shape[1] else torch.zeros(0, dtype=torch.bool)
    )
    for row in open_.nonzero()[:, 0].tolist():
        chosen[row] = scores[row].sort(descending=True, stable=True).indices[:k]
    return chosen


@dataclass(frozen=True)
class Hubness:
    """How unevenly items are found (Radovanovic et al. 2010, JMLR 11).

    Attributes:
        k: results per query.
        skewness: of the number of queries that find an item; 0 is even, above 1 a few items are found by many.
        never: share of items that no query finds.
        largest: share of queries that find the most frequent item.
    """

    k: int
    skewness: float
    never: float
    largest: float


def hubness(found: Tensor, items: int) -> Hubness | None:
    """Return the hubness of results.

    Args:
        found: `(Q, k)` positions, from `nearest`.
        items: size of the gallery.

    Returns:
        `None` if every query finds every item, or there are fewer than two queries or three items.
    """
    queries, k = found.shape
    if queries < 2 or items < 3 or k >= items:
        return None
    counts = torch.bincount(found.flatten().cpu(), minlength=items).double()
    centred = counts - counts.mean()
    spread = float(centred.square().mean().sqrt())
    skewness = 0.0 if spread == 0 else float(centred.pow(3).mean()) / spread**3
    return Hubness(k, skewness, float((counts == 0).double().mean()), float(counts.max()) / queries)


def results_kept(before: Tensor, after: Tensor) -> Tensor:
    """Return per query the share of its results `(Q, k)` that are found before and after, `(Q,)` in [0, 1]."""
    if before.shape != after.shape:
        raise ValueError(f"results do not match: {tuple(before.shape)} and {tuple(after.shape)}")
    same = (before[:, :, None] == after[:, None, :]).any(dim=2)
    return same.double().mean(dim=1)
