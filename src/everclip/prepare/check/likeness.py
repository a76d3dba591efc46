"""Whether two pictures show the same: equal pixels, or so alike that one is the other saved anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from everclip.data.pictures.deep import Deep
from everclip.data.pictures.images import Rendered
from everclip.prepare.check.neighbours import Hashes, Indices, bit_count

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
    """What is kept of a decoded picture for comparing.

    Attributes:
        thumb: thumbnail `(SIDE, SIDE, 3)` of the picture as a model sees it.
        pixels: digest of the picture before it was laid on a background or cut to 8 bits.
        blank: whether nothing is left to see, so that the thumbnail says nothing.
    """

    thumb: npt.NDArray[np.int16]
    pixels: bytes
    blank: bool


def sketch(picture: Image.Image) -> Sketch:
    """Return the sketch of an RGB picture that is its own original."""
    return Sketch(_thumb(picture), _digest(f"{picture.size}", picture.tobytes()), False)


def sketch_of(found: Rendered) -> Sketch:
    """Return the sketch of a decoded picture."""
    return Sketch(_thumb(found.picture), original_digest(found), found.blank)


def _thumb(picture: Image.Image) -> npt.NDArray[np.int16]:
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=3.0), dtype=np.int16)


def original_digest(found: Rendered) -> bytes:
    """Return a digest of all that a picture holds: equal digests mean copies of one original.

    What the conversion to RGB with 8 bits loses counts: two white drawings on transparency are no copies of each
    other though both are blank on white. Colours that are hidden because they are wholly transparent do not count.
    """
    if isinstance(found.source, Deep) and not _whole(found):
        values = np.ascontiguousarray(found.source.values)
        wide = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
        return _digest(f"{values.dtype.kind == 'f'} {values.shape}", wide.tobytes())
    if isinstance(found.source, Image.Image):
        if found.background:
            pixels = np.array(found.source.convert("RGBA"))
            pixels[pixels[..., 3] == 0] = 0
            return _digest(f"RGBA {found.picture.size}", pixels.tobytes())
        if found.source.mode in ("CMYK", "LAB", "HSV"):
            return _digest(f"{found.source.mode} {found.picture.size}", found.source.tobytes())
    return _digest(f"{found.picture.size}", found.picture.tobytes())


def _whole(found: Rendered) -> bool:
    """Whether 8 bits hold all of a picture's values."""
    span = found.span
    return (
        span is not None
        and (span.kind, span.signed, span.exponent) == ("i", False, 8)
        and not found.background
    )


def _digest(head: str, data: bytes) -> bytes:
    digest = hashlib.sha256(head.encode())
    digest.update(data)
    return digest.digest()


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
    blank = np.array([s.blank for s in sketches])
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
        seen = ~(blank[others] | blank[one])
        keep = equal | (seen & (mean <= MEAN_DIFFERENCE) & (largest <= LARGEST_DIFFERENCE))
        pairs.append(np.stack([np.full(int(keep.sum()), one), others[keep]], axis=1))
        differences.append(np.where(equal, -1.0, mean)[keep])
    if not pairs:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    return np.concatenate(pairs), np.concatenate(differences)
