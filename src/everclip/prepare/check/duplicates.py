"""Find duplicate images (equal bytes, equal pixels, or nearly equal) and images on several sides of the split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from everclip.data.pictures.images import render
from everclip.data.table import Table
from everclip.prepare.check.neighbours import Forest, Hashes, Indices, near_pairs
from everclip.prepare.check.similarity import alike, sketch_of

Kind = Literal["bytes", "pixels", "near"]
"""Degree of equality: the same file, the same pixels in another file, or a near duplicate."""

Tick = Callable[[int, int], None]

DISTANCE = 6
"""Bits in which the difference hashes of near duplicates may differ; then their pixels are compared."""

SIDES = ("train", "val", "test")
"""The values of the column `split`, from training to test."""

_LARGEST_COMPONENT = 1024
_STRIDE = 768


@dataclass(frozen=True)
class Group:
    """Equal images. `rows` holds all rows with the same bytes, else one row per distinct file."""

    kind: Kind
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Leak:
    """A held-out image that is also used for training or validation.

    Attributes:
        row: a row on the held-out side.
        other: a row with the same image on the other side.
        side, other_side: `test` and `train`, `test` and `val`, or `val` and `train`.
        kind: degree of equality.
        difference: mean difference of near duplicates' thumbnails, of 255; 0 for equal ones.
    """

    row: int
    other: int
    side: str
    other_side: str
    kind: Kind
    difference: float = 0.0


@dataclass
class Duplicates:
    """The result of `find_duplicates`.

    Attributes:
        groups: copies of the same bytes, then of the same pixels, then near duplicates; the largest first.
        surplus: number of redundant images per kind.
        leaks: test side before validation side, equal bytes before near duplicates.
        repeated: rows that repeat an earlier one: the same image with the same caption.
        conflicts: groups of equal images with different classes, one row per class.
        mislabelled: pairs of near duplicates with different classes, one per image, the most alike first.
        pictures: distinct files (by content).
        loosely_checked: images in sets of similar images that are too large to compare all pairs.
    """

    groups: list[Group] = field(default_factory=list)
    surplus: dict[Kind, int] = field(default_factory=dict)
    leaks: list[Leak] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    conflicts: list[tuple[int, ...]] = field(default_factory=list)
    mislabelled: list[tuple[int, int]] = field(default_factory=list)
    pictures: int = 0
    loosely_checked: int = 0


class _Contents:
    """The distinct files of the rows, and the groups of equal files."""

    def __init__(self, facts: pa.Table) -> None:
        hashes = facts.column("sha256").to_pylist()
        index: dict[str, int] = {}
        self.of_row = np.array([index.setdefault(value, len(index)) for value in hashes], dtype=np.int64)
        self.count = len(index)
        order = np.argsort(self.of_row, kind="stable")
        self.rows: list[Indices] = np.split(order, np.flatnonzero(np.diff(self.of_row[order])) + 1)
        self.first = np.array([rows[0] for rows in self.rows], dtype=np.int64)
        self.dhash = facts.column("dhash").to_numpy().astype(np.uint64)[self.first]
        self.pixels, self.near = Forest(self.count), Forest(self.count)


def find_duplicates(
    table: Table,
    facts: pa.Table,
    sides: Sequence[str | None] | None = None,
    distance: int = DISTANCE,
    tick: Tick = lambda done, total: None,
) -> Duplicates:
    """Find duplicate images, and images on several sides of the split.

    Rows with the same bytes and different captions are captions of one image, not duplicates.

    Args:
        table: N rows.
        facts: `sha256` and `dhash` of each row's image.
        sides: `train`, `val`, `test` or `None` per row; default: no split.
        distance: bits in which the hashes of near duplicates may differ.
        tick: called with (compared images, all candidates); only candidates are decoded again.
    """
    if not len(table):
        return Duplicates()
    contents = _Contents(facts)
    leaks = _Leaks(contents, sides or [None] * len(table))
    crossing = _Crossing(
        contents, table.column("class_key") if table.has("class_key") else [None] * len(table)
    )
    components = _components(contents, distance)
    total, done, loose = sum(map(len, components)), 0, 0
    for component in components:
        loose += len(component) if len(component) > _LARGEST_COMPONENT else 0
        for members in windows(component, contents.dhash):
            sketches = []
            for member in members:
                row = int(contents.first[member])
                sketches.append(sketch_of(render(*table.encoded(row))))
            pairs, differences = alike(sketches, contents.dhash[members], distance)
            pairs = members[pairs]
            equal = differences < 0
            contents.pixels.join(pairs[equal, 0], pairs[equal, 1])
            contents.near.join(pairs[:, 0], pairs[:, 1])
            leaks.add(pairs, differences)
            crossing.add(pairs, differences)
            done += len(members)
            tick(min(done, total), total)
    copies, repeated = _copies(table, contents)
    groups, surplus = _alike_groups(contents)
    surplus["bytes"] = sum(extra for _, extra in copies)
    groups = [*sorted((group for group, _ in copies), key=_largest), *groups]
    conflicts = _conflicts(table, contents)
    return Duplicates(
        groups, surplus, leaks.result(), repeated, conflicts, crossing.result(), contents.count, loose
    )


def _components(contents: _Contents, distance: int) -> list[Indices]:
    """Return the candidates: sets of files that are connected by similar hashes."""
    hashes, which = np.unique(contents.dhash, return_inverse=True)
    forest = Forest(contents.count)
    representative = np.zeros(len(hashes), dtype=np.int64)
    representative[which] = np.arange(contents.count)
    forest.join(np.arange(contents.count), representative[which])
    for pairs in near_pairs(hashes, distance):
        forest.join(representative[pairs[:, 0]], representative[pairs[:, 1]])
    return forest.groups()


def windows(component: Indices, hashes: Hashes) -> list[Indices]:
    """Split a component that is too large for all pairs into overlapping parts with similar hashes."""
    if len(component) <= _LARGEST_COMPONENT:
        return [component]
    component = component[np.argsort(hashes[component], kind="stable")]
    starts = range(0, len(component) - _LARGEST_COMPONENT + _STRIDE, _STRIDE)
    return [component[start : start + _LARGEST_COMPONENT] for start in starts]


def _alike_groups(contents: _Contents) -> tuple[list[Group], dict[Kind, int]]:
    """Return the groups of equal pixels and of near duplicates, and the surplus per kind."""
    pixels = [_by_first(contents, group, "pixels") for group in contents.pixels.groups()]
    surplus: dict[Kind, int] = {"bytes": 0, "pixels": sum(len(g.rows) - 1 for g in pixels), "near": 0}
    near = []
    for group in contents.near.groups():
        distinct = len({int(r) for r in contents.pixels.roots(group)})
        if distinct > 1:
            near.append(_by_first(contents, group, "near"))
            surplus["near"] += distinct - 1
    return [g for part in (pixels, near) for g in sorted(part, key=_largest)], surplus


def _largest(group: Group) -> tuple[int, int]:
    return -len(group.rows), group.rows[0]


def _by_first(contents: _Contents, group: Indices, kind: Kind) -> Group:
    return Group(kind, tuple(sorted(int(contents.first[c]) for c in group)))


def _copies(table: Table, contents: _Contents) -> tuple[list[tuple[Group, int]], list[int]]:
    """Return the groups of equal files with their surplus, and the rows that repeat an earlier row."""
    several = [rows for rows in contents.rows if len(rows) > 1]
    if not several:
        return [], []
    names = ("image_id", "class_key", "caption", "language")
    columns = {name: table.column(name) for name in names if table.has(name)}
    copies, repeated = [], []
    for rows in several:
        texts: dict[tuple[Any, ...], list[int]] = {}
        for row in (int(r) for r in rows):
            key = tuple(columns[n][row] if n in columns else None for n in names[1:])
            texts.setdefault(key, []).append(row)
        # Each image name, file, class and row without a caption counts as one claim to be a separate image.
        claims = [len({columns[n][r] for r in rows}) for n in names[:2] if n in columns]
        claims.append(len({table.origin(int(r)) for r in rows}))
        claims += [len(same) for key, same in texts.items() if not key[1]]
        extra = max(claims) - 1
        if extra:
            copies.append((Group("bytes", tuple(int(r) for r in rows)), extra))
        else:
            repeated += [row for same in texts.values() for row in same[1:]]
    return copies, sorted(repeated)


def _conflicts(table: Table, contents: _Contents) -> list[tuple[int, ...]]:
    """Return groups of equal images with different classes, one row per class."""
    if not table.has("class_key"):
        return []
    classes = table.column("class_key")
    joined = {int(c) for group in contents.pixels.groups() for c in group}
    parts = [np.concatenate([contents.rows[int(c)] for c in group]) for group in contents.pixels.groups()]
    parts += [rows for c, rows in enumerate(contents.rows) if len(rows) > 1 and c not in joined]
    found = []
    for rows in parts:
        first: dict[str, int] = {}
        for row in sorted(int(r) for r in rows):
            if classes[row] is not None:
                first.setdefault(str(classes[row]), row)
        if len(first) > 1:
            found.append(tuple(first.values()))
    return sorted(found)


class _Crossing:
    """Collects for every file its nearest duplicate with another class."""

    def __init__(self, contents: _Contents, classes: Sequence[Any]) -> None:
        number: dict[str, int] = {}
        codes = [-1 if c is None else number.setdefault(str(c), len(number)) for c in classes]
        self._first = contents.first
        self._codes = np.asarray(codes, dtype=np.int64)[contents.first]
        self._best: dict[int, tuple[float, int]] = {}

    def add(self, pairs: Indices, differences: np.ndarray) -> None:
        """Take pairs of files `(P, 2)` with differences `(P,)`; equal pixels are conflicts, not near duplicates."""
        one, other = self._codes[pairs[:, 0]], self._codes[pairs[:, 1]]
        crossing = (differences >= 0) & (one >= 0) & (other >= 0) & (one != other)
        rows = self._first[pairs[crossing]].tolist()
        for (a, b), apart in zip(rows, differences[crossing].tolist(), strict=True):
            for row, partner in ((a, b), (b, a)):
                self._best[row] = min(self._best.get(row, (np.inf, 0)), (apart, partner))

    def result(self) -> list[tuple[int, int]]:
        """Return pairs of rows, the most similar first."""
        ranked = {tuple(sorted((row, other))): apart for row, (apart, other) in self._best.items()}
        return [(a, b) for a, b in sorted(ranked, key=lambda pair: (ranked[pair], pair))]


class _Leaks:
    """Collects for every held-out file its best match on a training or validation side."""

    def __init__(self, contents: _Contents, sides: Sequence[str | None]) -> None:
        self._contents = contents
        number = np.array([SIDES.index(s) if s in SIDES else -1 for s in sides], dtype=np.int64)
        # row_on[side, file]: the first row of the file on that side, or -1.
        self._row_on = np.full((len(SIDES), contents.count), -1, dtype=np.int64)
        for row in range(len(number) - 1, -1, -1):
            if number[row] >= 0:
                self._row_on[number[row], contents.of_row[row]] = row
        self._best: dict[tuple[int, int], tuple[float, int, int]] = {}
        everything = np.arange(contents.count)
        if (self._row_on >= 0).any(axis=1).sum() > 1:
            self._note(everything, everything, np.full(contents.count, -2.0))

    def add(self, pairs: Indices, differences: np.ndarray) -> None:
        """Take pairs of equal files `(P, 2)` with differences `(P,)`; -1 marks equal pixels."""
        self._note(pairs[:, 0], pairs[:, 1], differences)
        self._note(pairs[:, 1], pairs[:, 0], differences)

    def _note(self, held: Indices, known: Indices, differences: np.ndarray) -> None:
        for side in (2, 1):
            for other in range(side):
                crossing = (self._row_on[side, held] >= 0) & (self._row_on[other, known] >= 0)
                for p in np.flatnonzero(crossing):
                    key = side, int(held[p])
                    rank = float(differences[p]), other, int(self._row_on[other, known[p]])
                    if key not in self._best or rank < self._best[key]:
                        self._best[key] = rank

    def result(self) -> list[Leak]:
        """Return the leaks, the most serious first."""
        leaks = []
        for (side, file), (difference, other, partner) in self._best.items():
            kind: Kind = "bytes" if difference == -2 else "pixels" if difference == -1 else "near"
            row = int(self._row_on[side, file])
            leaks.append(Leak(row, partner, SIDES[side], SIDES[other], kind, max(0.0, difference)))
        order = {"bytes": 0, "pixels": 1, "near": 2}
        return sorted(leaks, key=lambda k: (-SIDES.index(k.side), order[k.kind], k.difference, k.row))
