"""Find CLIP-blind pairs (MMVP, arXiv 2401.06209): a CLIP hardly tells two images apart, a vision-only model does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from everclip.diagnosis.bounding import SAMPLE, WIDTH, directions, projected

ABOVE, BELOW = 0.95, 0.6
"""The published bounds of the two cosines, for CLIP ViT-L/14 and DINOv2."""

TILE = 2048
"""Images per side of a tile; a tile of cosines takes 16 MiB."""

_MARGIN = 1e-4
"""Pairs this near to a bound are decided in float64: cosines in float32 depend on the shape of a tile."""

_BLOCK = 256  # rows that are taken to float64 at once: few enough to stay in the processor's cache
_MANY = 256  # of a tile, one pair in so many takes as long alone as all together in a product
_FAILS = 2  # tiles, more than those with success, after which bounds are given up


@dataclass(frozen=True)
class MinedPairs:
    """Blind pairs, the largest gap first; pairs of equal gap in the order of their positions.

    Attributes:
        left, right: positions of the images `(P,)` int64, `left < right`.
        clip: cosine of the CLIP's embeddings `(P,)` float64.
        reference: cosine of the vision-only model's embeddings `(P,)` float64.
        found: number of all pairs within both bounds; larger than P if there were more than `limit`.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    clip: NDArray[np.float64]
    reference: NDArray[np.float64]
    found: int

    def __len__(self) -> int:
        return len(self.left)

    @property
    def gap(self) -> NDArray[np.float64]:
        """The CLIP's cosine minus the reference's `(P,)`."""
        return self.clip - self.reference

    def chosen(self, positions: NDArray[np.int64]) -> MinedPairs:
        """Return the pairs at some positions, in this order."""
        at = positions
        return MinedPairs(self.left[at], self.right[at], self.clip[at], self.reference[at], self.found)


def mine(
    clip: torch.Tensor,
    reference: torch.Tensor,
    above: float = ABOVE,
    below: float = BELOW,
    limit: int = 10_000,
    tile: int = TILE,
) -> MinedPairs:
    """Return the pairs of images with `cos_clip > above` and `cos_reference < below`, exactly.

    All pairs are looked at, tile by tile. Memory does not grow with the square of the number of images: it holds a tile
    with its candidates, and the `limit` pairs of the largest gap. The result does not depend on `tile`, bit for bit.

    Args:
        clip: embeddings of a CLIP `(N, D)` of any norm, float16 or wider; row i is image i.
        reference: embeddings of a vision-only model `(N, E)`.
        above, below: the bounds.
        limit: how many pairs to keep at most, those with the largest `cos_clip - cos_reference`.
        tile: images per side of a tile.

    Raises:
        ValueError: if shapes do not fit, a row is zero, or a number is not finite.
    """
    if clip.ndim != 2 or reference.ndim != 2 or len(clip) != len(reference):
        raise ValueError(
            f"expected (N, D) and (N, E), found {tuple(clip.shape)} and {tuple(reference.shape)}"
        )
    if tile < 1 or limit < 1:
        raise ValueError(f"tile and limit must be positive, they are {tile} and {limit}")
    clip, reference = clip.detach().cpu(), reference.detach().cpu()
    sides = (
        _Side(clip, _norms(clip, "clip"), above - _MARGIN),
        _Side(reference, _norms(reference, "reference"), below + _MARGIN),
    )
    best = _Largest(limit)
    tiles = _Tiles(*sides, tile)
    for rows, columns in _places(len(clip), tile):
        left, right = tiles.candidates(rows, columns)
        near = _exact(clip, sides[0].norms, left, right)
        kept = near > above
        left, right, near = left[kept], right[kept], near[kept]
        far = _exact(reference, sides[1].norms, left, right)
        kept = far < below
        best.add(MinedPairs(left[kept], right[kept], near[kept], far[kept], int(kept.sum())))
    return best.pairs()


def cosines_of(
    clip: torch.Tensor, reference: torch.Tensor, left: NDArray[np.int64], right: NDArray[np.int64]
) -> MinedPairs:
    """Return given pairs with their cosines, in their order; arguments as in `mine`, which gives the same cosines."""
    found = [
        _exact(features, _norms(features, name), left, right)
        for features, name in ((clip, "clip"), (reference, "reference"))
    ]
    return MinedPairs(left, right, found[0], found[1], found=len(left))


def spread(pairs: MinedPairs, per_image: int) -> NDArray[np.int64]:
    """Return the positions of the pairs, in their order, that leave each image in at most `per_image` pairs."""
    times: dict[int, int] = {}
    kept = []
    for position, (left, right) in enumerate(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)):
        if max(times.get(left, 0), times.get(right, 0)) < per_image:
            kept.append(position)
            for image in (left, right):
                times[image] = times.get(image, 0) + 1
    return np.array(kept, dtype=np.int64)


def _norms(features: torch.Tensor, name: str) -> torch.Tensor:
    """Return the norm of each row in float64 `(N,)`."""
    norms = torch.empty(len(features), dtype=torch.float64)
    for start in range(0, len(features), _BLOCK):
        norms[start : start + _BLOCK] = features[start : start + _BLOCK].double().norm(dim=1)
    wrong = ~(torch.isfinite(norms) & (norms > 0))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name}[{row}] is zero or not finite, so it has no direction")
    return norms


def _places(count: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of the tiles on and above the diagonal."""
    parts = [slice(start, min(start + tile, count)) for start in range(0, count, tile)]
    for number, rows in enumerate(parts):
        yield from ((rows, columns) for columns in parts[number:])


@dataclass(frozen=True)
class _Side:
    """Features of one model `(N, D)`, the norm of each row `(N,)`, and its bound, wider by the margin."""

    features: torch.Tensor
    norms: torch.Tensor
    bound: float

    def units(self, part: slice) -> NDArray[np.float32]:
        """Return rows at unit length."""
        found: NDArray[np.float32] = (self.features[part].float() / self.norms[part, None].float()).numpy()
        return found


class _Rows(NamedTuple):
    """Rows of a tile at unit length `(T, D)`, and what bounds their cosines `(T, WIDTH + 1)`."""

    units: NDArray[np.float32]
    bounding: NDArray[np.float32] | None


class _Tiles:
    """Finds the candidates of a tile: pairs that may lie within the bounds, by cosines in float32.

    Where few directions bound the cosines well enough (`bounding.py`), a tile costs a small part of its product.
    """

    def __init__(self, clip: _Side, reference: _Side, tile: int) -> None:
        self._clip, self._reference = clip, reference
        count, width = clip.features.shape
        size = min(tile, count) ** 2
        # Used again by each tile.
        self._cosines, self._within = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.bool_)
        every = slice(0, count, max(1, -(-count // SAMPLE)))
        pays = count > TILE and width >= 3 * WIDTH
        self._chosen = directions(clip.units(every)) if pays else None
        self._failed = 0  # tiles whose bounds left too many pairs, minus the others
        self._rows: tuple[slice, _Rows] | None = None  # those of the last tile

    def candidates(self, rows: slice, columns: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the positions of the candidates, `left < right`."""
        if self._rows is None or self._rows[0] != rows:
            self._rows = rows, self._read(rows)
        one = self._rows[1]
        two = one if columns == rows else self._read(columns)
        found = self._bounded(one, two)
        if found is None:
            found = self._above(one.units, two.units)
            size = len(one.units) * len(two.units)
            if len(found) > size // _MANY:
                cosines = self._product(self._reference.units(rows), self._reference.units(columns))
                within = self._within[:size]
                within &= cosines < self._reference.bound
                found = np.flatnonzero(within)
        width = columns.stop - columns.start
        left, right = rows.start + found // width, columns.start + found % width
        later = left < right
        return left[later], right[later]

    def _read(self, part: slice) -> _Rows:
        units = self._clip.units(part)
        return _Rows(units, projected(units, self._chosen) if self._chosen is not None else None)

    def _bounded(self, one: _Rows, two: _Rows) -> NDArray[np.int64] | None:
        """Return the pairs that bounds leave; `None` if these are so many that the product is faster."""
        if one.bounding is None or two.bounding is None:
            return None
        found = self._above(one.bounding, two.bounding)
        fails = len(found) > len(one.units) * len(two.units) // _MANY
        self._failed += 1 if fails else -1
        if self._failed > _FAILS:  # more often than not, they cost more than they save
            self._chosen = None
        return None if fails else found

    def _above(self, one: NDArray[np.float32], two: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the places in a tile where the product is above the bound."""
        product = self._product(one, two)
        found = np.greater(product, self._clip.bound, out=self._within[: len(product)])
        return np.flatnonzero(found)

    def _product(self, one: NDArray[np.float32], two: NDArray[np.float32]) -> NDArray[np.float32]:
        flat = self._cosines[: len(one) * len(two)]
        # NumPy takes half the time for the product with the transpose of the same array.
        np.matmul(one, two.T, out=flat.reshape(len(one), len(two)))
        return flat


def _exact(
    features: torch.Tensor, norms: torch.Tensor, left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the cosines of pairs `(P,)`, each summed in float64 and alone, so that no other pair changes it."""
    found = np.empty(len(left))
    for start in range(0, len(left), _BLOCK):
        one, two = (torch.from_numpy(side[start : start + _BLOCK]) for side in (left, right))
        rows = features[one].double().numpy(), features[two].double().numpy()
        dots = np.einsum("nd,nd->n", *rows)
        found[start : start + _BLOCK] = dots / (norms[one] * norms[two]).numpy()
    return found


class _Largest:
    """The pairs of the largest gap among those that are added, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit, self._found = limit, 0
        nothing = np.empty(0, np.int64), np.empty(0)
        self._parts = [MinedPairs(nothing[0], nothing[0], nothing[1], nothing[1], found=0)]

    def add(self, part: MinedPairs) -> None:
        """Add pairs of a tile."""
        self._found += len(part)
        if len(part):
            self._parts.append(part)
        if (
            sum(map(len, self._parts)) > 2 * self._limit
        ):  # sorting at every tile would cost more than the tile
            self._parts = [self.pairs()]

    def pairs(self) -> MinedPairs:
        """Return the pairs, the largest gap first."""
        left, right = (np.concatenate([getattr(p, name) for p in self._parts]) for name in ("left", "right"))
        clip, reference = (
            np.concatenate([getattr(p, n) for p in self._parts]) for n in ("clip", "reference")
        )
        order = np.lexsort((right, left, reference - clip))[: self._limit]
        return MinedPairs(left[order], right[order], clip[order], reference[order], self._found)
