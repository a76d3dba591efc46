"""Find CLIP-blind pairs (MMVP, arXiv 2401.06209): a CLIP hardly tells two images apart, a vision-only model does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

ABOVE, BELOW = 0.95, 0.6
"""The published bounds of the two cosines, for CLIP ViT-L/14 and DINOv2."""

TILE = 2048
"""Images per side of a tile; a tile of cosines takes 16 MiB."""

_MARGIN = 1e-4
"""Pairs this near to a bound are decided in float64: cosines in float32 depend on the shape of a tile."""

_CHUNK = 1 << 22  # numbers of one side that are gathered at once, in float64


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

    All pairs are looked at, tile by tile. Memory does not grow with the square of the number of images: it holds three
    tiles, and the `limit` pairs of the largest gap. The result does not depend on `tile`, bit for bit.

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
    norms = _norms(clip, "clip"), _norms(reference, "reference")
    best = _NOTHING
    for rows, columns in _tiles(len(clip), tile):
        left, right = _candidates(clip, reference, norms, rows, columns, above, below)
        near = _exact(clip, norms[0], left, right)
        far = _exact(reference, norms[1], left, right)
        kept = (near > above) & (far < below)
        more = MinedPairs(left[kept], right[kept], near[kept], far[kept], int(kept.sum()))
        best = _largest(best, more, limit)
    return best


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


_NOTHING = MinedPairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0), found=0)


def _norms(features: torch.Tensor, name: str) -> torch.Tensor:
    """Return the norm of each row in float64 `(N,)`."""
    norms = torch.empty(len(features), dtype=torch.float64)
    for start in range(0, len(features), TILE):
        norms[start : start + TILE] = features[start : start + TILE].double().norm(dim=1)
    wrong = ~(torch.isfinite(norms) & (norms > 0))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name}[{row}] is zero or not finite, so it has no direction")
    return norms


def _tiles(count: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Return the tiles on and above the diagonal."""
    starts = range(0, count, tile)
    for top in starts:
        for side in starts:
            if side >= top:
                yield slice(top, min(top + tile, count)), slice(side, min(side + tile, count))


def _candidates(
    clip: torch.Tensor,
    reference: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor],
    rows: slice,
    columns: slice,
    above: float,
    below: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of the pairs of a tile that may lie within the bounds, by cosines in float32."""
    near = _cosines(clip, norms[0], rows, columns) > above - _MARGIN
    if rows == columns:
        near = near.triu(1)
    pairs = near.nonzero()
    if len(pairs) > near.numel() // 64:  # many: one more product is faster than to gather them
        near &= _cosines(reference, norms[1], rows, columns) < below + _MARGIN
        pairs = near.nonzero()
    offset = torch.tensor([rows.start, columns.start])
    left, right = (pairs + offset).T.numpy()
    return left, right


def _cosines(features: torch.Tensor, norms: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """Return the cosines of a tile in float32."""
    one, two = (features[part].float() / norms[part, None].float() for part in (rows, columns))
    return one @ two.T


def _exact(
    features: torch.Tensor, norms: torch.Tensor, left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the cosines of pairs `(P,)`, each summed in float64 and alone, so that no other pair changes it."""
    found = np.empty(len(left))
    step = max(1, _CHUNK // features.shape[1])
    for start in range(0, len(left), step):
        one, two = (torch.from_numpy(side[start : start + step]) for side in (left, right))
        dots = (features[one].double() * features[two].double()).sum(dim=1)
        found[start : start + step] = (dots / (norms[one] * norms[two])).numpy()
    return found


def _largest(best: MinedPairs, more: MinedPairs, limit: int) -> MinedPairs:
    """Return the `limit` pairs of the largest gap of both, in order."""
    both = [
        np.concatenate([getattr(best, name), getattr(more, name)])
        for name in ("left", "right", "clip", "reference")
    ]
    left, right, clip, reference = both
    order = np.lexsort((right, left, reference - clip))[:limit]
    return MinedPairs(left[order], right[order], clip[order], reference[order], best.found + more.found)
