"""The nearest items of queries, block by block, and what they say about hubs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from everclip.evaluation.representation import unit_rows

NEAREST = 10
"""Results per query that are compared and counted."""

_BLOCK = 512  # queries whose scores are in memory at a time


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
    # One whole number per item that sorts by (cosine rounded to fp32, lower position first): a unique order.
    last = torch.arange(len(items) - 1, -1, -1, dtype=torch.int64, device=items.device)
    found = []
    for start in range(0, len(asked), _BLOCK):
        bits = (asked[start : start + _BLOCK] @ items.T).float().view(torch.int32).long()
        ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # the order of floats, -0 equal to 0
        keys = ordered * (1 << 32) + last
        found.append(keys.topk(k, dim=1).indices)
    return torch.cat(found)


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
