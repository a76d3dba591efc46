"""Spatial disorder (Mod-X, Ni et al. 2023, arXiv 2305.07437): how far the two spaces turn, and how far they turn apart.

If both spaces turn by the same rotation, every cosine between an image and a text stays. If they turn differently
(inter-modal deviation), matching pairs no longer find each other. Functions take unit or other rows as those of
`everclip.evaluation.representation` do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from everclip.evaluation.representation import Pairs, check_pairs, rotation_angles, undefined, unit_rows

BIN_DEGREES = 5
"""Width of a bin of `rotation_histogram`."""
BINS = 180 // BIN_DEGREES
_DETERMINED = 1e-7
"""Directions whose share of the cross-covariance is smaller are noise of fp32: no rotation can be told from them."""


def pair_angle_change(before: Pairs, after: Pairs) -> float | None:
    """Return `mean_i | arccos(v_i.u_i) after - before |` in degrees, where image v_i and text u_i are a pair."""
    for side in (0, 1):
        check_pairs(before[side], after[side])
    angles = [rotation_angles(*pair) for pair in (before, after)]
    if angles[0] is None or angles[1] is None:
        return None
    return float((angles[1] - angles[0]).abs().mean())


def procrustes_deviation(before: Pairs, after: Pairs) -> float | None:
    """Return `|| R_v - R_u ||_F`, the difference between the best rotations of images and of texts.

    `R = argmin || Z_before R - Z_after ||_F` over orthogonal R (orthogonal Procrustes, Schönemann 1966) for each side
    by itself: 0 if both turn together, at most `2 sqrt(D)`. Needs items that span the space, so at least D; otherwise a
    rotation is not determined, and the result is `None`. Takes `D x D` memory beside the items.
    """
    maps = [_rotation(before[side], after[side]) for side in (0, 1)]
    return None if maps[0] is None or maps[1] is None else float((maps[0] - maps[1]).norm())


def rotation_histogram(before: Tensor, after: Tensor) -> list[int]:
    """Return how many items moved by how much: counts of `rotation_angles` in bins of 5 degrees, from 0 to 180."""
    angles = rotation_angles(before, after)
    if angles is None:
        return []
    # The last bin holds 180 degrees as well.
    bins = (angles / BIN_DEGREES).long().clamp(max=BINS - 1).cpu()
    counts: list[int] = torch.bincount(bins, minlength=BINS).tolist()
    return counts


def _rotation(before: Tensor, after: Tensor) -> Tensor | None:
    """Return the orthogonal `(D, D)` map that brings `before` closest to `after`; `None` if it is not determined."""
    check_pairs(before, after, width=True)
    pair = unit_rows("procrustes_deviation", before, after)
    if pair is None:
        return None
    left, values, right = torch.linalg.svd(pair[0].T @ pair[1])
    if float(values[-1]) <= _DETERMINED * float(values[0]):
        undefined("procrustes_deviation", f"{len(before)} items do not span {before.shape[1]} dimensions")
        return None
    rotation: Tensor = left @ right
    return rotation
