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
_DETERMINED = 1e-12
"""Directions with a smaller share of the cross-covariance are rounding of fp32: no rotation can be told from them."""
_SHARED = 1 - 1e-6
"""Directions of two spaces with a larger cosine are the same direction."""


def pair_angle_change(before: Pairs, after: Pairs) -> float | None:
    """Return `mean_i | arccos(v_i.u_i) after - before |` in degrees, where image v_i and text u_i are a pair."""
    for side in (0, 1):
        check_pairs(before[side], after[side])
    angles = [rotation_angles(*pair) for pair in (before, after)]
    if angles[0] is None or angles[1] is None:
        return None
    return float((angles[1] - angles[0]).abs().mean())


def procrustes_deviation(before: Pairs, after: Pairs) -> float | None:
    """Return `|| P (R_v - R_u) ||_F`, the difference between the best rotations of images and of texts.

    `R = argmin || Z_before R - Z_after ||_F` over orthogonal R (orthogonal Procrustes, Schönemann 1966) for each side
    by itself. Items determine R only in the directions that they span, so both are compared in the directions P that
    images and texts share: all D if both span the space. 0 if both turn together, at most `2 sqrt(D)`. Takes `D x D`
    memory beside the items.

    Returns:
        The difference; `None` if images and texts share no direction.
    """
    found = [_rotation(before[side], after[side]) for side in (0, 1)]
    if found[0] is None or found[1] is None:
        return None
    (image_map, image_span), (text_map, text_span) = found[0], found[1]
    left, cosines, _ = torch.linalg.svd(image_span.T @ text_span, full_matrices=False)
    shared = image_span @ left[:, cosines > _SHARED]
    if not shared.shape[1]:
        undefined("procrustes_deviation", "images and texts span no common direction")
        return None
    return float((shared.T @ (image_map - text_map)).norm())


def rotation_histogram(before: Tensor, after: Tensor) -> list[int]:
    """Return how many items moved by how much: counts of `rotation_angles` in bins of 5 degrees, from 0 to 180."""
    angles = rotation_angles(before, after)
    if angles is None:
        return []
    # The last bin holds 180 degrees as well.
    bins = (angles / BIN_DEGREES).long().clamp(max=BINS - 1).cpu()
    counts: list[int] = torch.bincount(bins, minlength=BINS).tolist()
    return counts


def _rotation(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the best orthogonal map `(D, D)` from `before` to `after`, and the directions that determine it `(D, K)`.

    Returns:
        `None` with a warning for a degenerate input.
    """
    check_pairs(before, after, width=True)
    pair = unit_rows("procrustes_deviation", before, after)
    if pair is None:
        return None
    left, values, right = torch.linalg.svd(pair[0].T @ pair[1])
    return left @ right, left[:, values > _DETERMINED * values[0]]
