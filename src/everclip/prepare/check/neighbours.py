"""Find pairs of 64-bit hashes that differ in few bits without comparing all pairs, and join pairs to groups.

Multi-index hashing (Norouzi et al., arXiv 1307.2982): cut the bits into `distance + 2` bands; two hashes within
`distance` agree in at least two of them, so only hashes that share two bands are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

_BITS = 64
_BLOCK = 1 << 20  # comparisons at once; limits the memory
# Neighbouring bits of an image hash are often equal (a plain background), so each band takes random bits.
_ORDER = np.random.default_rng(64).permutation(_BITS)


def near_pairs(hashes: Hashes, distance: int) -> Iterator[Indices]:
    """Yield every pair of hashes that differ in at most `distance` bits, each pair once.

    Args:
        hashes: `(N,)`, best without repeats: N equal ones give N * (N - 1) / 2 pairs.
        distance: bits that may differ, 0 to 16.

    Yields:
        Blocks `(P, 2)` of positions, the smaller one first.
    """
    tables = [first | second for first, second in combinations(_bands(distance + 2), 2)]
    for number, table in enumerate(tables):
        for left, right in _agreeing(hashes & table):
            apart = hashes[left] ^ hashes[right]
            keep = bit_count(apart) <= distance
            for earlier in tables[:number]:
                keep &= (apart & earlier) != 0  # an earlier table gave this pair
            if keep.any():
                yield np.sort(np.stack([left[keep], right[keep]], axis=1), axis=1)


def bit_count(values: Hashes) -> Indices:
    """Return how many bits of each value are set."""
    ones = [np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)]
    one, two, four = (np.uint64(shift) for shift in (1, 2, 4))
    values = values - ((values >> one) & ones[0])
    values = (values & ones[1]) + ((values >> two) & ones[1])
    values = (values + (values >> four)) & ones[2]
    return ((values * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)


def _bands(count: int) -> list[np.uint64]:
    """Split the 64 bits into `count` disjoint masks."""
    return [
        np.bitwise_or.reduce(np.uint64(1) << part.astype(np.uint64)) for part in np.array_split(_ORDER, count)
    ]


def _agreeing(keys: Hashes) -> Iterator[tuple[Indices, Indices]]:
    """Yield blocks of position pairs with equal keys."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    position = np.arange(len(keys))
    # Number of later positions with the same key.
    ends = np.searchsorted(sorted_keys, sorted_keys, side="right")
    behind = ends - position - 1
    total = np.cumsum(behind)
    start = 0
    while start < len(keys):
        base = total[start - 1] if start else 0
        # As many positions as fit into a block, but at least one.
        stop = max(start + 1, int(np.searchsorted(total, base + _BLOCK, side="right")))
        counts = behind[start:stop]
        pairs = int(counts.sum())
        if pairs:
            left = np.repeat(position[start:stop], counts)
            offset = np.arange(pairs) - np.repeat(np.cumsum(counts) - counts, counts)
            yield order[left], order[left + 1 + offset]
        start = stop


class Forest:
    """Union-find of N items on whole arrays."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count, dtype=np.int64)

    def join(self, left: Indices, right: Indices) -> None:
        """Join the groups of each of `left` and its partner in `right`."""
        while True:
            one, other = self.roots(left), self.roots(right)
            apart = one != other
            if not apart.any():
                return
            high, low = np.maximum(one, other)[apart], np.minimum(one, other)[apart]
            np.minimum.at(self._parent, high, low)

    def roots(self, items: Indices) -> Indices:
        """Return the representative of the group of each of `items`."""
        found = self._parent[items]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                self._parent[items] = found
                return found
            found = above

    def groups(self) -> list[Indices]:
        """Return the groups of two or more, ordered by their smallest member, each in ascending order."""
        roots = self.roots(np.arange(len(self._parent)))
        order = np.argsort(roots, kind="stable")
        borders = np.flatnonzero(np.diff(roots[order])) + 1
        return [part for part in np.split(order, borders) if len(part) > 1]
