"""Whether two pictures show the same: equal pixels, or so alike that one is the other saved anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from everclip.data.neighbours import Hashes, Indices, bit_count

SIDE = 16
"""Pictures are compared as thumbnails of this side."""

MEAN_DIFFERENCE = 10.0
LARGEST_DIFFERENCE = 64
"""What thumbnails of near duplicates differ by at the most, of 255, on average and in the worst place.

A photograph saved again as JPEG of quality 30, at half the side, or 10 % brighter stays within them; the same
metronome with its pendulum on the other side does not (mean 1.9, largest 112).
"""

BRIGHTER = 24.0
"""Grey levels by which one may be brighter than the other as a whole; not counted as a difference."""


@dataclass(frozen=True)
class Sketch:
    """What is kept of a decoded picture for comparing: thumbnail `(SIDE, SIDE, 3)` and a digest of all its pixels."""

    thumb: npt.NDArray[np.int16]
    pixels: bytes


def sketch(picture: Image.Image) -> Sketch:
    """Return the sketch of an RGB picture."""
    thumb = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=3.0), dtype=np.int16)
    digest = hashlib.sha256(f"{picture.size}".encode())
    digest.update(picture.tobytes())
    return Sketch(thumb, digest.digest())


def alike(
    sketches: Sequence[Sketch], hashes: Hashes, distance: int
) -> tuple[Indices, npt.NDArray[np.float64]]:
    """Find the pairs that are near duplicates.

    Args:
        sketches: N pictures.
        hashes: their difference hashes `(N,)`.
        distance: bits in which the hashes of near duplicates may differ.

    Returns:
        Pairs `(P, 2)`, the smaller position first, and their mean differences `(P,)`; -1 marks equal pixels.
    """
    thumbs = np.stack([s.thumb for s in sketches])
    digests = np.array([s.pixels for s in sketches])
    pairs, differences = [], []
    for one in range(len(sketches) - 1):
        others = one + 1 + np.flatnonzero(bit_count(hashes[one + 1 :] ^ hashes[one]) <= distance)
        if not len(others):
            continue
        apart = (thumbs[others] - thumbs[one]).astype(np.float32)
        shift = apart.mean(axis=(1, 2, 3), keepdims=True).clip(-BRIGHTER, BRIGHTER)
        apart = np.abs(apart - shift)
        mean, largest = apart.mean(axis=(1, 2, 3)), apart.max(axis=(1, 2, 3))
        equal = digests[others] == digests[one]
        keep = equal | ((mean <= MEAN_DIFFERENCE) & (largest <= LARGEST_DIFFERENCE))
        pairs.append(np.stack([np.full(int(keep.sum()), one), others[keep]], axis=1))
        differences.append(np.where(equal, -1.0, mean)[keep])
    if not pairs:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    return np.concatenate(pairs), np.concatenate(differences)
