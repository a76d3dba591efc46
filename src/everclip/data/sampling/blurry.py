"""Streams with blurry borders: classes that belong to one part, and classes whose samples leak into the others.

Bang et al., i-Blurry (arXiv 2203.15355), cuts the classes into equal parts; Moon et al., Si-Blurry (arXiv 2308.09303),
at random. Here the classes and samples that do not divide equally are spread over the parts; the reference code leaves
them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from everclip.data.sampling.order import generator, unit_hash


@dataclass(frozen=True, kw_only=True)
class Blurry:
    """How a stream is cut into parts.

    Attributes:
        parts: number of parts, T.
        disjoint: percent of the classes that occur in one part only, N.
        leak: percent of the samples of the other (blurry) classes that go to other parts, M.
        cuts: `random` (Si-Blurry) or `equal` (i-Blurry).
        remainder: `spread` keeps every class and sample; `drop` leaves out what does not divide equally, as the
            reference code does.
    """

    parts: int
    disjoint: float
    leak: float
    cuts: Literal["random", "equal"] = "random"
    remainder: Literal["spread", "drop"] = "spread"

    def sizes(self, classes: int) -> tuple[int, int]:
        """Return the numbers of disjoint and of blurry classes."""
        disjoint = int(classes * self.disjoint // 100)
        if self.remainder == "drop":
            disjoint = disjoint // self.parts * self.parts
            return disjoint, (classes - disjoint) // self.parts * self.parts
        return disjoint, classes - disjoint


class Draws(Protocol):
    """Random draws, one after the other."""

    def permutation(self, size: int) -> list[int]:
        """Return a permutation of `range(size)`."""

    def cuts(self, size: int, parts: int) -> list[int]:
        """Return `parts - 1` sorted positions in `range(size)`; all 0 if the range is empty."""


class PublishedDraws:
    """The draws of the reference code, from one torch generator on the CPU."""

    def __init__(self, seed: int) -> None:
        import torch

        self._torch = torch
        self._draw = torch.Generator().manual_seed(seed)

    def permutation(self, size: int) -> list[int]:
        """Return a permutation of `range(size)`."""
        return list(map(int, self._torch.randperm(size, generator=self._draw)))

    def cuts(self, size: int, parts: int) -> list[int]:
        """Return `parts - 1` sorted positions in `range(size)`; all 0 if the range is empty."""
        if not size:
            return [0] * (parts - 1)
        drawn = self._torch.randint(0, size, (parts - 1,), generator=self._draw)
        return list(map(int, drawn.sort().values))


class KeyedDraws:
    """Draws that are a function of the seed alone, on every machine and in every version of torch."""

    def __init__(self, seed: int) -> None:
        self._draw = generator("blurry", seed)

    def permutation(self, size: int) -> list[int]:
        """Return a permutation of `range(size)`."""
        return list(map(int, self._draw.permutation(size)))

    def cuts(self, size: int, parts: int) -> list[int]:
        """Return `parts - 1` sorted positions in `range(size)`; all 0 if the range is empty."""
        return sorted(map(int, self._draw.integers(0, max(1, size), parts - 1)))


def published_parts(labels: Sequence[int], classes: int, rule: Blurry, seed: int) -> list[list[int]]:
    """Return the positions of the samples of each part, as the reference code draws them.

    The order of the draws, all from one generator: the classes; with random cuts those of the disjoint classes, of the
    blurry classes and of the leaking samples; the pool of leaking samples; then the samples of each part.

    Args:
        labels: class of each sample, in `range(classes)`; their order decides the stream.
        classes: number of classes.
        rule: how the stream is cut.
        seed: of the generator.
    """
    return _parts(labels, classes, rule, PublishedDraws(seed))


def keyed_parts(keys: Sequence[str], ids: Sequence[str], rule: Blurry, seed: int) -> list[list[int]]:
    """Return the positions of the samples of each part; the order of the rows in the data does not matter.

    Args:
        keys: class of each sample.
        ids: id of each sample.
        rule: how the stream is cut.
        seed: of all draws.
    """
    names = sorted(set(keys), key=lambda key: (unit_hash("blurry class", seed, key), key))
    number = {key: i for i, key in enumerate(names)}
    rows = sorted(range(len(ids)), key=lambda i: (unit_hash("blurry sample", seed, ids[i]), ids[i], keys[i]))
    parts = _parts([number[keys[row]] for row in rows], len(names), rule, KeyedDraws(seed))
    return [[rows[i] for i in part] for part in parts]


def _parts(labels: Sequence[int], classes: int, rule: Blurry, draws: Draws) -> list[list[int]]:
    n_disjoint, n_blurry = rule.sizes(classes)
    order = draws.permutation(classes)
    groups = order[:n_disjoint], order[n_disjoint : n_disjoint + n_blurry]
    random, count = rule.cuts == "random", rule.parts
    edges = [[0, *draws.cuts(len(group), count), len(group)] for group in groups] if random else [
        _equal(len(group), count) for group in groups
    ]  # fmt: skip
    disjoint, blurry = (_of_parts(labels, group, edge) for group, edge in zip(groups, edges, strict=True))
    total = sum(map(len, blurry))
    if random:
        leaking = int(rule.leak * total // 100)
        given = [stop - start for start, stop in pairwise([0, *draws.cuts(leaking, count), leaking])]
    else:
        given = [int(rule.leak * len(part) // 100) for part in blurry]
    pool = [row for part, amount in zip(blurry, given, strict=True) for row in part[:amount]]
    pool = [pool[i] for i in draws.permutation(len(pool))]
    received = given if random else _shares(len(pool), count, rule.remainder)
    found, at = [], 0
    for part, own, amount, more in zip(disjoint, blurry, given, received, strict=True):
        samples = [*part, *own[amount:], *pool[at : at + more]]
        at += more
        found.append([samples[i] for i in draws.permutation(len(samples))])
    return found


def _equal(size: int, parts: int) -> list[int]:
    """Return the edges of nearly equal parts; the first ones are larger by one."""
    edges = [0]
    for part in range(parts):
        edges.append(edges[-1] + size // parts + (part < size % parts))
    return edges


def _shares(size: int, parts: int, remainder: str) -> list[int]:
    return [size // parts + (remainder == "spread" and part < size % parts) for part in range(parts)]


def _of_parts(labels: Sequence[int], group: Sequence[int], edges: Sequence[int]) -> list[list[int]]:
    """Return the samples of each part's classes, in the order of the data."""
    part_of = {
        label: part for part, (start, stop) in enumerate(pairwise(edges)) for label in group[start:stop]
    }
    found: list[list[int]] = [[] for _ in edges[1:]]
    for position, label in enumerate(labels):
        if label in part_of:
            found[part_of[label]].append(position)
    return found
