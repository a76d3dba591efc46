"""The range of values of images with more than 8 bits, and how it becomes 0 to 255.

A file of 16 or 32 bits does not say how many of them are used: cameras and scanners store 10, 12 or 14 bits in 16.
The range is, in this order:

1. that of the data block (`data.bits`);
2. that of the file: the TIFF tags SMaxSampleValue or MaxSampleValue, or BitsPerSample where it is not the whole
   container (12);
3. the smallest of the ranges of 8, 10, 12, 14, 16, 20, 24, 28 and 32 bits that holds the values; for floating-point
   numbers also 0 to 1 and its quarters. Values below zero make the range symmetrical (-1 to 1, -2048 to 2048).

Such ranges are few on purpose: stretching each image from its own darkest to its own brightest value would remove
the brightness that tells images apart, and would turn noise into an image. In a data set the range that a tenth of
its images need holds for all of them, so that a dark image stays dark beside bright ones (`common_range`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
"""Integers of any width, or floating-point numbers."""

_BITS = (8, 10, 12, 14, 16, 20, 24, 28, 32)
_OUTLIERS = 0.001
"""Share of the largest and smallest values that is ignored: defective pixels of a sensor are at the maximum."""

_COUNTED = 2**17
"""Up to this many different integers are counted; more are partially sorted."""

_BLOCK = 2**22

_OVERSHOOT = 1.05
"""Interpolated floating-point values may exceed their range by this factor."""

_SIGNED = 0.1
"""Negative values count from this share of the largest value on; smaller ones are rounding errors."""

_NEED = 0.1
"""Share of a data set's images that must need a range for it to hold for all."""


@dataclass(frozen=True)
class Range:
    """Values from 0 (or, if `signed`, from minus the same) to two to the power of `exponent`.

    Attributes:
        kind: `i` for integers, `f` for floating-point numbers; a data set has a common range for each.
        signed: whether values below zero have a meaning.
        exponent: of two.
        stated: whether the file or the data block gives it; otherwise it was guessed.
    """

    kind: Literal["i", "f"]
    signed: bool
    exponent: int
    stated: bool = False

    def __str__(self) -> str:
        return f"{self.kind}{'-' if self.signed else '+'}{self.exponent}{'!' if self.stated else ''}"

    @classmethod
    def parse(cls, text: str) -> Range:
        """Return the range that `str` wrote."""
        kind: Literal["i", "f"] = "i" if text[0] == "i" else "f"
        return cls(kind, text[1] == "-", int(text[2:].rstrip("!")), text.endswith("!"))

    @property
    def words(self) -> str:
        """The range for people: `0 to 4095`."""
        top = 2**self.exponent if self.exponent >= 0 else 2.0**self.exponent
        if self.signed:
            return f"-{top:g} to {top:g}"
        return f"0 to {top - 1 if self.exponent >= 8 else top:g}"

    @property
    def is_share(self) -> bool:
        """Whether the values are floating-point numbers up to 1."""
        return self.kind == "f" and self.exponent <= 0

    def holds(self, other: Range) -> bool:
        """Whether every value of `other` lies within."""
        return self.kind == other.kind and self.signed >= other.signed and self.exponent >= other.exponent


def range_of(values: Values, ignored: float | None = None) -> Range:
    """Return the smallest of the known ranges that holds the values.

    Args:
        values: of one image, any shape; NaN and infinity are not counted.
        ignored: the value that marks missing measurements.
    """
    kind: Literal["i", "f"] = "f" if values.dtype.kind == "f" else "i"
    low, high = bounds(values, ignored)
    signed = low < -_SIGNED * max(high, 0.0) and low < 0
    top = max(high, -low) if signed else high
    return Range(kind, signed, _exponent(top, kind == "f", signed))


def bounds(values: Values, ignored: float | None = None) -> tuple[float, float]:
    """Return the smallest and the largest value without outliers; (0, 0) if there is no value."""
    found = values[np.isfinite(values)] if values.dtype.kind == "f" else values.reshape(-1)
    if ignored is not None:
        found = found[found != ignored]
    if not found.size:
        return 0.0, 0.0
    drop = int(found.size * _OUTLIERS)
    low, high = found.min(), found.max()
    if not drop or low == high:
        return float(low), float(high)
    if found.dtype.kind in "iu" and int(high) - int(low) < _COUNTED:
        # Counting is several times faster than partial sorting.
        counts = np.zeros(int(high) - int(low) + 1, np.int64)
        for start in range(0, found.size, _BLOCK):  # counting needs eight bytes a value
            part = (found[start : start + _BLOCK] - low).astype(np.int64)
            counts += np.bincount(part, minlength=len(counts))
        ranks = counts.cumsum()
        places = np.searchsorted(ranks, (drop, found.size - 1 - drop), side="right")
        return float(int(low) + int(places[0])), float(int(low) + int(places[1]))
    parted = np.partition(found, (drop, found.size - 1 - drop))
    return float(parted[drop]), float(parted[-1 - drop])


def _exponent(top: float, floats: bool, signed: bool) -> int:
    if not floats:
        # An integer of 8 bits with a sign reaches 128, one of 12 bits 2048.
        return next((bits - signed for bits in _BITS if top <= 2 ** (bits - signed)), 32)
    if top <= 0:
        return 0
    if top > _OVERSHOOT:
        return next((bits for bits in (2, 4, 6, *_BITS) if top <= _OVERSHOOT * 2**bits), 64)
    exponent = 0
    while top <= 1 / 16 and top <= _OVERSHOOT * 2.0 ** (exponent - 2) and exponent > -60:
        exponent -= 2
    return exponent


def eight_bits(values: Values, span: Range, ignored: float | None = None) -> npt.NDArray[np.uint8]:
    """Return values as levels from 0 to 255; values outside the range are clipped, NaN becomes 0."""
    if values.dtype.kind in "iu" and not span.signed and ignored is None:
        clipped: Values = np.clip(values, 0, min(2**span.exponent - 1, np.iinfo(values.dtype).max))
        whole: npt.NDArray[np.uint8] = (clipped >> (span.exponent - 8)).astype(np.uint8)
        return whole
    with np.errstate(invalid="ignore", over="ignore"):
        levels = values.astype(np.float32)
        if span.signed:
            levels = (levels + np.float32(2.0**span.exponent)) / np.float32(2)
        # Floats up to 1 are scaled to 255; whole numbers are truncated like integers.
        steps = 255.0 if span.exponent <= 0 or span.signed else 256.0
        levels = np.nan_to_num(
            levels * np.float32(steps / 2.0**span.exponent), nan=0.0, posinf=255.0, neginf=0.0
        )
    if ignored is not None:
        levels[values == ignored] = 0
    result: npt.NDArray[np.uint8] = levels.clip(0, 255).astype(np.uint8)
    return result


def common_range(ranges: Sequence[Range]) -> Range:
    """Return the range that at least a tenth of a data set's images need; `ranges` are of one kind, not empty."""
    need = _NEED * len(ranges)
    signed = sum(r.signed for r in ranges) >= need
    exponents = sorted({r.exponent for r in ranges}, reverse=True)
    enough = next(e for e in exponents if sum(r.exponent >= e for r in ranges) >= need)
    return Range(ranges[0].kind, signed, enough)
