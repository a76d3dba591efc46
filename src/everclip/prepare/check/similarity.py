"""Compare images: equal pixels, or near duplicates such as a file saved again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from everclip.data.pictures.bit_depth import HighBitImage
from everclip.data.pictures.images import Rendered
from everclip.prepare.check.neighbours import Hashes, Indices, bit_count

SIDE = 16
"""Side of the thumbnails that are compared, in pixels."""

MEAN_DIFFERENCE = 10.0
LARGEST_DIFFERENCE = 64
"""Limits of the difference of near duplicates' thumbnails, of 255: mean and largest.

A photograph saved again as JPEG of quality 30, at half the side, or 10 % brighter stays within them; the same
metronome with its pendulum on the other side does not (mean 1.9, largest 112).
"""

BRIGHTER = 24.0
"""A difference in overall brightness up to this many grey levels is ignored."""


@dataclass(frozen=True)
class Sketch:
    """The data of a decoded image that are compared.

    Attributes:
        thumb: thumbnail `(SIDE, SIDE, 3)` of the image as a model sees it.
        pixels: digest of the image before compositing and conversion to 8 bits.
        blank: whether the image shows nothing, so that the thumbnail is useless.
    """

    thumb: npt.NDArray[np.int16]
    pixels: bytes
    blank: bool


def sketch(picture: Image.Image) -> Sketch:
    """Return the sketch of an RGB image that was not converted."""
    return Sketch(_thumb(picture), _digest(f"{picture.size}", picture.tobytes()), False)


def sketch_of(rendered: Rendered) -> Sketch:
    """Return the sketch of a decoded image."""
    return Sketch(_thumb(rendered.picture), original_digest(rendered), rendered.blank)


def _thumb(picture: Image.Image) -> npt.NDArray[np.int16]:
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=3.0), dtype=np.int16)


def original_digest(rendered: Rendered) -> bytes:
    """Return a digest of an image before conversion; equal digests mean copies of one original.

    Details that the conversion to RGB with 8 bits loses count: two white drawings on transparency are not copies of
    each other, though both are blank on white. Colours of fully transparent pixels do not count.
    """
    if isinstance(rendered.source, HighBitImage) and not _whole(rendered):
        values = np.ascontiguousarray(rendered.source.values)
        wide = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
        return _digest(f"{values.dtype.kind == 'f'} {values.shape}", wide.tobytes())
    if isinstance(rendered.source, Image.Image):
        if rendered.background:
            pixels = np.array(rendered.source.convert("RGBA"))
            pixels[pixels[..., 3] == 0] = 0
            return _digest(f"RGBA {rendered.picture.size}", pixels.tobytes())
        if rendered.source.mode in ("CMYK", "LAB", "HSV"):
            return _digest(f"{rendered.source.mode} {rendered.picture.size}", rendered.source.tobytes())
    return _digest(f"{rendered.picture.size}", rendered.picture.tobytes())


def _whole(rendered: Rendered) -> bool:
    """Whether 8 bits hold all values of an image."""
    span = rendered.span
    return (
        span is not None
        and (span.kind, span.signed, span.exponent) == ("i", False, 8)
        and not rendered.background
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
        sketches: N images.
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
