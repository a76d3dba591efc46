"""Retrieval: ranks of the positives in blocks, and every metric as a function of those ranks.

One rule orders a gallery everywhere: score descending, equal scores by lower index first. A negative that
ties with a positive and has the lower index therefore counts against it. Scores are dot products of the
features as given (unit rows make them cosines), summed in float64 and rounded to float32: only then do equal
vectors get equal scores whatever the block they fall in, and results depend on neither block size nor TF32
settings.

Metrics are fractions in [0, 1]; ranks are 1-based; what has no queries is `None`. `hits_at_k` is the "R@k" of CLIP
papers: a positive among the top k. (The fraction of the positives found differs with five captions per image.) A `k`
above the size of the gallery means the whole gallery.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 21
"""Scores held at once: 8 MiB as float32, under 100 MiB with all that is derived from them.

Larger blocks leave the cache of a CPU and are slower."""

_SLICE = 4096  # gallery rows in float64 at a time, so that a large gallery is never copied whole


@dataclass(frozen=True, slots=True)
class Positives:
    """Which gallery items are right for each query, in CSR form.

    Attributes:
        offsets: `(Q + 1,)` int64; the positives of query q are `indices[offsets[q]:offsets[q + 1]]`.
        indices: `(P,)` int64 gallery indices, no duplicates within a query.
    """

    offsets: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        """Refuse offsets that do not fit and duplicates, which would count twice in AP and recall."""
        counts = self.counts
        if self.offsets[0] != 0 or int(self.offsets[-1]) != len(self.indices) or bool((counts < 0).any()):
            raise ValueError("offsets must rise from 0 to the number of indices")
        if not len(self.indices):
            return
        if int(self.indices.min()) < 0:
            raise ValueError("a positive has a negative gallery index")
        width = int(self.indices.max()) + 1
        cells, times = torch.unique(self.rows * width + self.indices, return_counts=True)
        if bool((times > 1).any()):
            query, item = divmod(int(cells[times > 1][0]), width)
            raise ValueError(f"query {query} lists gallery item {item} more than once")

    @property
    def counts(self) -> Tensor:
        """`(Q,)` number of positives of each query."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """`(P,)` query of each positive."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]]) -> "Positives":
        """From one sequence of gallery indices per query."""
        known = [list(items) for items in lists]
        flat = [index for items in known for index in items]
        return cls._from_counts([len(items) for items in known], flat)

    @classmethod
    def from_keys(cls, queries: Sequence[object], gallery: Sequence[object]) -> "Positives":
        """Every gallery item whose key (an `image_id`, a class) equals the key of the query."""
        places: dict[object, list[int]] = {}
        for index, key in enumerate(gallery):
            places.setdefault(key, []).append(index)
        return cls.from_lists([places.get(key, []) for key in queries])

    @classmethod
    def _from_counts(cls, counts: Sequence[int] | Tensor, indices: Sequence[int] | Tensor) -> "Positives":
        sizes = torch.as_tensor(counts, dtype=torch.int64)
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return cls(offsets, torch.as_tensor(indices, dtype=torch.int64))

    def keep(self, columns: Tensor) -> "Positives":
        """Only the positives among the gallery indices `columns`, `(G',)`."""
        kept = torch.isin(self.indices, columns)
        counts = torch.bincount(self.rows[kept], minlength=len(self.counts))
        return Positives._from_counts(counts, self.indices[kept])


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks of all positives of the queries that have any.

    Attributes:
        queries: `(K,)` int64, the evaluated queries.
        offsets: `(K + 1,)` int64, as in `Positives`.
        ranks: `(P,)` int64, 1-based, ascending within a query.
    """

    queries: Tensor
    offsets: Tensor
    ranks: Tensor


class TopK(NamedTuple):
    """The best gallery items, best first: `indices` `(Q, k)` int64 and `scores` `(Q, k)` float32."""

    indices: Tensor
    scores: Tensor


def positive_ranks(
    queries: Tensor,
    gallery: Tensor,
    positives: Positives,
    *,
    columns: Tensor | None = None,
    empty: Literal["error", "exclude"] = "error",
    block_elements: int = BLOCK_ELEMENTS,
) -> Ranks:
    """Rank of every positive of every query. Memory is bounded by the block, not by `Q x G`.

    Args:
        queries: `(Q, D)` features.
        gallery: `(G, D)` features.
        positives: Q queries, indices into the gallery.
        columns: only these gallery items compete: `(G,)` bool or `(G',)` indices. Positives outside drop out.
        empty: what to do with a query that has no positive.
        block_elements: scores held at once.

    Raises:
        ValueError: shapes do not fit, a feature is not finite (NaN would rank first), a positive lies outside
            the gallery, or a query has no positive and `empty` is `"error"` (the message names it).
    """
    queries, gallery = _features(queries, gallery)
    if len(positives.counts) != len(queries):
        raise ValueError(f"{len(queries)} queries, but positives for {len(positives.counts)}")
    if len(positives.indices) and int(positives.indices.max()) >= len(gallery):
        raise ValueError(f"gallery item {int(positives.indices.max())} of a gallery of {len(gallery)}")
    if columns is not None:
        columns = _columns(columns, len(gallery))
        gallery = gallery[columns.to(gallery.device)]
        kept = positives.keep(columns)
        positives = Positives(kept.offsets, torch.searchsorted(columns, kept.indices))
    none = positives.counts == 0
    if bool(none.any()) and empty == "error":
        raise ValueError(f"query {int(none.int().argmax())} has no positive in the gallery")
    ranks = torch.empty(len(positives.indices), dtype=torch.int64)
    query_of = positives.rows
    for start, keys, _ in _blocks(queries, gallery, block_elements):
        low, high = (int(positives.offsets[at]) for at in (start, start + len(keys)))
        rows = (query_of[low:high] - start).to(keys.device)
        own = keys[rows, positives.indices[low:high].to(keys.device)]
        # As many positives at once as the block has queries: many positives per query must not burst it.
        for at in range(0, high - low, len(keys)):
            part = slice(at, at + len(keys))
            ahead = keys[rows[part]] > own[part, None]
            ranks[low:high][part] = ahead.sum(dim=1, dtype=torch.int32).cpu() + 1
    order = torch.argsort(query_of * (len(gallery) + 1) + ranks)
    kept_queries = (~none).nonzero()[:, 0]
    offsets = torch.cat([positives.offsets[:1], positives.offsets[1:][~none]])
    return Ranks(kept_queries, offsets, ranks[order])


def top_k(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    *,
    columns: Tensor | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> TopK:
    """The k best gallery items of every query, best first; with `k` above the gallery, all of it.

    Args:
        queries: `(Q, D)` features.
        gallery: `(G, D)` features.
        k: at least 1.
        columns: only these gallery items compete: `(G,)` bool or `(G',)` indices.
        block_elements: scores held at once.

    Raises:
        ValueError: `k < 1`, shapes do not fit, or a feature is not finite.
    """
    if k < 1:
        raise ValueError(f"k must be positive, it is {k}")
    queries, gallery = _features(queries, gallery)
    columns = torch.arange(len(gallery)) if columns is None else _columns(columns, len(gallery))
    if len(columns) < len(gallery):
        gallery = gallery[columns.to(gallery.device)]
    width = min(k, len(gallery))
    indices = torch.empty(len(queries), width, dtype=torch.int64)
    values = torch.empty(len(queries), width)
    for start, keys, scores in _blocks(queries, gallery, block_elements):
        best = keys.topk(width, dim=1).values
        found = _LOW - (best & _LOW)
        indices[start : start + len(keys)] = columns[found.cpu()]
        values[start : start + len(keys)] = scores.gather(1, found).cpu()
    return TopK(indices, values)


def best_ranks(ranks: Ranks) -> Tensor:
    """`(K,)` rank of the best positive of each query."""
    return ranks.ranks[ranks.offsets[:-1]]


def hits_at_k(ranks: Ranks, k: int) -> Tensor:
    """`(K,)` bool: at least one positive among the top k. Feeds the paired bootstrap."""
    return best_ranks(ranks) <= _positive(k)


def average_precision(ranks: Ranks) -> Tensor:
    """`(K,)` float64: `AP(q) = sum over positives of precision at their rank / |P|`."""
    counts = ranks.offsets.diff()
    first = torch.repeat_interleave(ranks.offsets[:-1], counts)
    found = torch.arange(len(ranks.ranks)) - first + 1
    return _per_query(ranks, found.double() / ranks.ranks)


def mean_average_precision(ranks: Ranks) -> float | None:
    """Mean of `average_precision` over queries."""
    return _mean(average_precision(ranks))


def median_rank(ranks: Ranks) -> float | None:
    """Median of the best ranks, 1-based; the mean of the middle two for an even number of queries."""
    return float(np.median(best_ranks(ranks).numpy())) if len(ranks.queries) else None


_LOW = 0xFFFFFFFF


def _blocks(queries: Tensor, gallery: Tensor, elements: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First query, keys `(B, G)` int64 and scores `(B, G)` float32 of each block of queries.

    A key holds the order-preserving bits of the score above the complement of the index: comparing keys is
    comparing by score, then by lower index, and no two are equal.
    """
    index = _LOW - torch.arange(len(gallery), device=gallery.device)
    rows = min(8192, max(1, elements // max(1, len(gallery))))
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows].double()
        scores = torch.empty(len(block), len(gallery), device=gallery.device)
        for at in range(0, len(gallery), _SLICE):
            scores[:, at : at + _SLICE] = block @ gallery[at : at + _SLICE].double().T
        scores += 0.0  # makes -0.0 equal to 0.0 in bits too
        bits = scores.view(torch.int32)
        keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
        yield start, keys.bitwise_left_shift_(32).add_(index), scores


def _features(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"expected (Q, D) and (G, D), got {tuple(queries.shape)} and {tuple(gallery.shape)}")
    for name, features in (("query", queries), ("gallery item", gallery)):
        bad = ~features.isfinite().all(dim=1)
        if bool(bad.any()):
            raise ValueError(f"{name} {int(bad.int().argmax())} has a feature that is not finite")
    # MPS has no float64.
    where = torch.device("cpu") if queries.device.type == "mps" else queries.device
    return queries.detach().to(where), gallery.detach().to(where)


def _columns(columns: Tensor, size: int) -> Tensor:
    """Ascending gallery indices on the CPU: ascending, so that the tie rule keeps its meaning."""
    columns = columns.cpu()
    if columns.dtype == torch.bool:
        if columns.shape != (size,):
            raise ValueError(f"a mask of shape {tuple(columns.shape)} for a gallery of {size}")
        return columns.nonzero()[:, 0]
    columns = torch.unique(columns.to(torch.int64))
    if len(columns) and not 0 <= int(columns[0]) <= int(columns[-1]) < size:
        raise ValueError(f"columns outside a gallery of {size}")
    return columns


def _per_query(ranks: Ranks, values: Tensor) -> Tensor:
    counts = ranks.offsets.diff()
    rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return torch.bincount(rows, weights=values, minlength=len(counts)) / counts


def _positive(k: int) -> int:
    if k < 1:
        raise ValueError(f"k must be positive, it is {k}")
    return k


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
