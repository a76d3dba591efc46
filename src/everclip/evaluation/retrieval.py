"""Retrieval: compute the ranks of the positives in blocks, and every metric from these ranks.

A gallery is always ordered by descending score, and equal scores by ascending index. So a negative that ties with a
positive ranks before it if its index is lower. Scores are dot products of the features (cosines for unit rows), summed
in float64 and rounded to float32. Only then do equal vectors get equal scores in every block, and results depend
neither on the block size nor on TF32 settings.

Metrics are fractions in [0, 1], or `None` without queries; ranks start at 1. `hits_at_k` is the "R@k" of CLIP papers:
a positive among the top k. (With five captions per image, this is not the fraction of positives among the top k.) A `k`
above the size of the gallery means the whole gallery.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 21
"""Scores in memory at a time: 8 MiB as float32, less than 100 MiB with all intermediate values.

Larger blocks do not fit into the cache of a CPU and are slower."""

_SLICE = 4096  # gallery rows in float64 at a time, so that a large gallery is never copied whole


@dataclass(frozen=True, slots=True)
class Positives:
    """The gallery items that are right for each query, in CSR form.

    Attributes:
        offsets: `(Q + 1,)` int64; the positives of query q are `indices[offsets[q]:offsets[q + 1]]`.
        indices: `(P,)` int64 gallery indices, no duplicates within a query.
    """

    offsets: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        """Check the offsets, and that no query has duplicates, which would count twice in AP and recall."""
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
        """`(Q,)`: the number of positives of each query."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """`(P,)`: the query of each positive."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]]) -> "Positives":
        """Make positives from one sequence of gallery indices per query."""
        per_query = [list(items) for items in lists]
        flat = [index for items in per_query for index in items]
        return cls._from_counts([len(items) for items in per_query], flat)

    @classmethod
    def from_keys(cls, queries: Sequence[object], gallery: Sequence[object]) -> "Positives":
        """Match every gallery item whose key (an `image_id`, a class) equals the key of the query."""
        indices: dict[object, list[int]] = {}
        for index, key in enumerate(gallery):
            indices.setdefault(key, []).append(index)
        return cls.from_lists([indices.get(key, []) for key in queries])

    @classmethod
    def _from_counts(cls, counts: Sequence[int] | Tensor, indices: Sequence[int] | Tensor) -> "Positives":
        sizes = torch.as_tensor(counts, dtype=torch.int64)
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return cls(offsets, torch.as_tensor(indices, dtype=torch.int64))

    def keep(self, columns: Tensor) -> "Positives":
        """Return only the positives among the gallery indices `columns`, `(G',)`."""
        kept = torch.isin(self.indices, columns)
        counts = torch.bincount(self.rows[kept], minlength=len(self.counts))
        return Positives._from_counts(counts, self.indices[kept])


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of all positives, for the queries that have any.

    Attributes:
        queries: `(K,)` int64, the evaluated queries.
        offsets: `(K + 1,)` int64, as in `Positives`.
        ranks: `(P,)` int64, from 1, ascending within a query.
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
    """Return the rank of every positive of every query. Memory is bounded by the block, not by `Q x G`.

    Args:
        queries: `(Q, D)` features.
        gallery: `(G, D)` features.
        positives: the positives of the Q queries, as indices into the gallery.
        columns: rank only these gallery items: `(G,)` bool or `(G',)` indices. Other positives are left out.
        empty: what to do with a query without positives.
        block_elements: scores in memory at a time.

    Raises:
        ValueError: if shapes do not match, a feature is not finite (NaN would rank first), a positive is outside the
            gallery, or a query has no positive and `empty` is `"error"` (the message names the query).
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
        positive_keys = keys[rows, positives.indices[low:high].to(keys.device)]
        # At most as many positives at a time as the block has queries, so that memory stays bounded.
        for at in range(0, high - low, len(keys)):
            part = slice(at, at + len(keys))
            ahead = keys[rows[part]] > positive_keys[part, None]
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
    """Return the k best gallery items of every query, best first; all items if `k` is above the gallery's size.

    Args:
        queries: `(Q, D)` features.
        gallery: `(G, D)` features.
        k: at least 1.
        columns: rank only these gallery items: `(G,)` bool or `(G',)` indices.
        block_elements: scores in memory at a time.

    Raises:
        ValueError: if `k < 1`, shapes do not match, or a feature is not finite.
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
        positions = _LOW - (best & _LOW)
        indices[start : start + len(keys)] = columns[positions.cpu()]
        values[start : start + len(keys)] = scores.gather(1, positions).cpu()
    return TopK(indices, values)


def best_ranks(ranks: Ranks) -> Tensor:
    """Return the rank `(K,)` of the best positive of each query."""
    return ranks.ranks[ranks.offsets[:-1]]


def hits_at_k(ranks: Ranks, k: int) -> Tensor:
    """Return `(K,)` bool: whether a positive is among the top k of each query."""
    return best_ranks(ranks) <= _positive(k)


def average_precision(ranks: Ranks) -> Tensor:
    """Return `(K,)` float64: `AP(q) = sum over positives of precision at their rank / |P|`."""
    counts = ranks.offsets.diff()
    first = torch.repeat_interleave(ranks.offsets[:-1], counts)
    positives_so_far = torch.arange(len(ranks.ranks)) - first + 1
    return _per_query(ranks, positives_so_far.double() / ranks.ranks)


def mean_average_precision(ranks: Ranks) -> float | None:
    """Return the mean of `average_precision` over queries."""
    return _mean(average_precision(ranks))


def median_rank(ranks: Ranks) -> float | None:
    """Return the median of the best ranks; for an even number of queries the mean of the middle two."""
    return float(np.median(best_ranks(ranks).numpy())) if len(ranks.queries) else None


_LOW = 0xFFFFFFFF


def _blocks(queries: Tensor, gallery: Tensor, elements: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the first query, keys `(B, G)` int64 and scores `(B, G)` float32 of each block of queries.

    The high bits of a key are the order-preserving bits of the score, its low bits the complement of the index. So
    keys compare by score, then by lower index, and no two are equal.
    """
    index = _LOW - torch.arange(len(gallery), device=gallery.device)
    rows = min(8192, max(1, elements // max(1, len(gallery))))
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows].double()
        scores = torch.empty(len(block), len(gallery), device=gallery.device)
        for at in range(0, len(gallery), _SLICE):
            scores[:, at : at + _SLICE] = block @ gallery[at : at + _SLICE].double().T
        scores += 0.0  # turns -0.0 into 0.0, so that their bits are equal
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
    """Return gallery indices on the CPU, ascending, so that the tie rule stays valid."""
    columns = columns.cpu()
    if columns.dtype == torch.bool:
        if columns.shape != (size,):
            raise ValueError(f"a mask of shape {tuple(columns.shape)} for a gallery of {size}")
        return columns.nonzero()[:, 0]
    columns = torch.unique(columns.to(torch.int64))
    if len(columns) and not 0 <= int(columns[0]) <= int(columns[-1]) < size:
        raise ValueError(f"columns are outside a gallery of {size}")
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
