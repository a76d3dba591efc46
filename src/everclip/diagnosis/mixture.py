"""Mixtures of a CLIP with a vision-only model on the level of scores (MMVP, Tong et al. 2024, arXiv 2401.06209).

Between images, `s = weight cos_clip + (1 - weight) cos_vision`: a vision-only model tells apart what a CLIP cannot.
It has no text tower, so between a text and an image there is no such score. What is left is to re-rank: the CLIP makes
a shortlist for a text, and images of the shortlist that look like its best ones move up (`reranked`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from everclip.diagnosis.mining import TILE, MinedPairs

_BINS = 1 << 16
"""Bins of cosines in [-1, 1]: a matched bound is exact to 3e-5."""


def require_weight(weight: float) -> None:
    """Refuse a weight outside [0, 1].

    Raises:
        ValueError: if it is outside.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of the CLIP is {weight}; expected 0 (vision-only model) to 1 (CLIP)")


def joined(clip: torch.Tensor, vision: torch.Tensor, weight: float) -> torch.Tensor:
    """Return features `(N, D + E)` of unit length whose dot products are the mixed cosines.

    They are `[sqrt(weight) x ; sqrt(1 - weight) y]`, so an index of one vector per image searches with the mixture.

    Args:
        clip, vision: `(N, D)` and `(N, E)` of the same images, of any norm.
        weight: the CLIP's share.

    Raises:
        ValueError: for another number of rows, one that is zero or not finite, or a weight outside [0, 1].
    """
    require_weight(weight)
    _require_rows(clip, vision)
    x, y = _units(clip), _units(vision)
    return torch.cat([weight**0.5 * x, (1 - weight) ** 0.5 * y], dim=1)


def mixed_cosines(clip: torch.Tensor, vision: torch.Tensor, weight: float) -> torch.Tensor:
    """Return `weight cos_clip + (1 - weight) cos_vision` between all images `(N, N)`; arguments as in `joined`."""
    require_weight(weight)
    _require_rows(clip, vision)
    x, y = _units(clip), _units(vision)
    return weight * (x @ x.T) + (1 - weight) * (y @ y.T)


def reranked(
    scores: torch.Tensor, vision: torch.Tensor, weight: float, shortlist: int = 100, seeds: int = 1
) -> torch.Tensor:
    """Return the images of each text's shortlist, best first `(Q, K)`, after re-ranking by how they look.

    An image's new score is `weight z(cos_clip(text, image)) + (1 - weight) z(v)`, where v is its mean cosine to the
    `seeds` best images of the CLIP in the vision-only model, and z standardises over the shortlist: the two kinds of
    cosines have other ranges. With one seed, the best image stays the best. Equal scores keep the CLIP's order.

    Args:
        scores: the CLIP's similarities of texts and images `(Q, N)`.
        vision: features of the vision-only model `(N, E)`, of any norm.
        weight: the CLIP's share; 1 keeps its order.
        shortlist: K, images per text that are ranked again; all others stay behind them.
        seeds: best images of the CLIP that the others are compared with.

    Raises:
        ValueError: if shapes or numbers do not fit.
    """
    require_weight(weight)
    if scores.dim() != 2 or vision.dim() != 2 or scores.shape[1] != len(vision):
        raise ValueError(f"expected (Q, N) and (N, E), found {tuple(scores.shape)} and {tuple(vision.shape)}")
    if not bool(torch.isfinite(scores).all() & torch.isfinite(vision).all()):
        raise ValueError("a similarity or a feature is not finite, so it has no place in an order")
    if not 1 <= seeds <= shortlist:
        raise ValueError(f"seeds is {seeds}; expected 1 to shortlist={shortlist}")
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :shortlist]
    own = scores.gather(1, order).double()
    looks = normalize(vision.double(), dim=1)[order]  # (Q, K, E)
    seen = torch.einsum("qke,qse->qks", looks, looks[:, :seeds]).mean(dim=2)
    total = weight * _standardised(own) + (1 - weight) * _standardised(seen)
    return order.gather(1, total.argsort(dim=1, descending=True, stable=True))


@dataclass(frozen=True)
class MixedPairs:
    """What a mixture makes of blind pairs.

    Attributes:
        weight: the CLIP's share.
        below_bound: number of pairs whose mixed cosine is not above the CLIP's own bound. Mixing lowers nearly all
            cosines, so this says little.
        bound: the mixed cosine that as many pairs of images exceed as exceed the CLIP's bound.
        apart: number of pairs whose mixed cosine is not above `bound`: they are told apart by rank.
        pairs: number of pairs.
    """

    weight: float
    below_bound: int
    bound: float
    apart: int
    pairs: int


def mix_pairs(
    clip: torch.Tensor, vision: torch.Tensor, pairs: MinedPairs, weight: float, above: float, tile: int = TILE
) -> MixedPairs:
    """Return what a mixture makes of blind pairs.

    Args:
        clip, vision: features of the same images `(N, D)`, `(N, E)`.
        pairs: blind pairs of these images, with both cosines.
        weight: the CLIP's share.
        above: the CLIP's bound.
        tile: images per side of a tile.
    """
    require_weight(weight)
    bound = matched_bound(clip, vision, weight, above, tile)
    mixed = weight * pairs.clip + (1 - weight) * pairs.reference
    return MixedPairs(weight, int((mixed <= above).sum()), bound, int((mixed <= bound).sum()), len(pairs))


def matched_bound(
    clip: torch.Tensor, vision: torch.Tensor, weight: float, above: float, tile: int = TILE
) -> float:
    """Return the mixed cosine that as many pairs of images exceed as have a CLIP's cosine above `above`.

    It is the lower border of a bin of 3e-5. A weight of 1 gives `above`. Memory is bounded by the tile.
    """
    if weight == 1:
        return above
    _require_rows(clip, vision)
    count, exceeding = np.zeros(_BINS, dtype=np.int64), 0
    for top in range(0, len(clip), tile):
        for side in range(top, len(clip), tile):
            x, y = (
                normalize(f[top : top + tile].float(), dim=1)
                @ normalize(f[side : side + tile].float(), dim=1).T
                for f in (clip, vision)
            )
            if top == side:  # each pair once, no image with itself
                later = torch.ones_like(x, dtype=torch.bool).triu(1)
                x, y = x[later], y[later]
            exceeding += int((x > above).sum())
            mixed = (weight * x + (1 - weight) * y).flatten()
            bins = ((mixed + 1) / 2 * _BINS).long().clamp(0, _BINS - 1)
            count += np.bincount(bins.numpy(), minlength=_BINS)
    behind = np.cumsum(count[::-1])  # pairs in the highest bins
    bin_ = _BINS - 1 - int(np.searchsorted(behind, exceeding))
    return 2 * max(bin_, 0) / _BINS - 1


def _standardised(values: torch.Tensor) -> torch.Tensor:
    """Return rows with mean 0 and deviation 1; equal values become 0."""
    centred = values - values.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(deviation > 1e-9, centred / deviation.clamp_min(1e-9), torch.zeros_like(centred))


def _units(features: torch.Tensor) -> torch.Tensor:
    """Return rows `(N, D)` of unit length in float32."""
    if not bool((torch.isfinite(features).all(dim=1) & (features != 0).any(dim=1)).all()):
        raise ValueError("a feature is zero or not finite, so it has no direction")
    return normalize(features.float(), dim=1)


def _require_rows(clip: torch.Tensor, vision: torch.Tensor) -> None:
    if clip.dim() != 2 or vision.dim() != 2 or len(clip) != len(vision):
        raise ValueError(f"expected (N, D) and (N, E), found {tuple(clip.shape)} and {tuple(vision.shape)}")
