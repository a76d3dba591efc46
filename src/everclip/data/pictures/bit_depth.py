"""Images with more than 8 bits per channel: the stored values, and the range that the file states."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from everclip.data.pictures import png_chunks
from everclip.data.pictures.value_range import Range, Values, bounds, eight_bits, range_of

_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE, _SAMPLE_FORMAT, _S_MAX_SAMPLE = 258, 262, 281, 339, 341
_NODATA = 42113
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


@dataclass(frozen=True)
class HighBitImage:
    """Values of an image `(H, W)` or `(H, W, C)`; `alpha` is the last channel of two or four.

    Attributes:
        values: as stored.
        inverted: whether 0 means white.
        ignored: the value that marks missing measurements.
        stated: the range that the file states.
    """

    values: Values
    inverted: bool = False
    ignored: float | None = None
    stated: Range | None = None

    def span(self, bits: int | None = None) -> Range:
        """Return the range that `bits` of the data block gives, else that of the file, else that of the values.

        Floating-point values up to 1 are shares, which have no bits.
        """
        own = range_of(self._colours, self.ignored)
        if bits is not None and not own.is_share:
            return Range(own.kind, own.signed, bits - own.signed, stated=True)
        return self.stated if self.stated is not None and self.stated.holds(own) else own

    @property
    def is_varied(self) -> bool:
        """Whether not all values are equal."""
        return bool(self._colours.min() != self._colours.max())

    @property
    def _colours(self) -> Values:
        channels = self.values.shape[2] if self.values.ndim == 3 else 1
        return self.values[..., : channels - 1] if channels in (2, 4) else self.values

    def picture(self, span: Range) -> Image.Image:
        """Return the image with 8 bits a channel: L, LA, RGB or RGBA."""
        levels = eight_bits(self._colours, span, self.ignored)
        if self.inverted:
            levels = 255 - levels
        if self.values.ndim == 2:
            return Image.fromarray(levels)
        if self._colours is not self.values:
            alpha = self.values[..., -1:]
            levels = np.concatenate([levels, eight_bits(alpha, range_of(alpha))], axis=2)
        return Image.fromarray(np.ascontiguousarray(levels.squeeze()))


def high_bit_image(picture: Image.Image, data: bytes, formats: tuple[str, ...]) -> HighBitImage | None:
    """Return the values of a loaded image, `None` if it has 8 bits or less.

    Args:
        picture: as Pillow opened and loaded it.
        data: its file.
        formats: that Pillow may open.
    """
    mode = picture.mode
    if mode == "F" or mode.startswith("I"):
        values: Values = np.asarray(picture)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)  # I;16B is big-endian
        clear = picture.info.get("transparency")
        if isinstance(picture, TiffImagePlugin.TiffImageFile):
            return _of_tiff(values, picture)
        if isinstance(clear, int):
            alpha = np.where(values == clear, 0, 65535).astype(values.dtype)
            return HighBitImage(np.stack([values, alpha], axis=2))
        return HighBitImage(values)
    return _colours(picture, data, formats)


def _of_tiff(values: Values, picture: TiffImagePlugin.TiffImageFile) -> HighBitImage:
    tags = picture.tag_v2
    unsigned = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED
    if values.dtype == np.int32 and unsigned and tags.get(_BITS_PER_SAMPLE, (0,))[0] == 32:
        values = values.view(np.uint32)  # Pillow has no mode for them
    return HighBitImage(
        values,
        inverted=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
        ignored=_nodata(tags.get(_NODATA)),
        stated=_stated(tags, values),
    )


def _nodata(text: object) -> float | None:
    """Return the value that GDAL writes for missing measurements."""
    try:
        return float(str(text).strip("\0 ")) if text is not None else None
    except ValueError:
        return None


def _stated(tags: TiffImagePlugin.ImageFileDirectory_v2, values: Values) -> Range | None:
    """Return the range that the tags state, or `None`."""
    kind = values.dtype.kind
    for tag in (_S_MAX_SAMPLE, _MAX_SAMPLE):
        most = tags.get(tag)
        most = most[0] if isinstance(most, tuple) and most else most
        # Many writers state the whole container, whatever the values use.
        if isinstance(most, int | float) and most > 0 and kind in "iu" and most not in (2**15 - 1, 2**16 - 1):
            bits = int(most).bit_length()
            return Range("i", False, max(8, bits), stated=True) if bits <= 16 else None
    bits = tags.get(_BITS_PER_SAMPLE, (0,))[0]
    return Range("i", False, bits, stated=True) if 8 < bits < 16 and kind in "iu" else None


def _colours(picture: Image.Image, data: bytes, formats: tuple[str, ...]) -> HighBitImage | None:
    """Return the 16-bit values of a colour image; Pillow keeps only their upper eight bits."""
    if not _sixteen_bits(picture, data):
        return None
    if bounds(np.asarray(picture)[..., :3])[1] >= 64:
        return None  # more than 14 bits are used: the upper byte is enough
    both = _both_bytes(data, formats)
    return None if both is None else HighBitImage(both)


def _sixteen_bits(picture: Image.Image, data: bytes) -> bool:
    if picture.format == "PNG":
        return data.startswith(png_chunks.SIGNATURE) and data[24] == 16 and data[25] in (2, 4, 6)
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and picture.mode in ("RGB", "RGBA"):
        return tuple(picture.tag_v2.get(_BITS_PER_SAMPLE, ())[:3]) == (16, 16, 16)
    return False


def _both_bytes(data: bytes, formats: tuple[str, ...]) -> Values | None:
    """Return `(H, W, C)` of 16 bits; decode once for each byte of a value.

    A raw mode says which byte of a little- or big-endian value Pillow takes; the other raw mode gives the other byte.
    """
    halves = []
    for other in (False, True):
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            raws = [_raw_mode(tile) for tile in picture.tile]
            if any(raw == "LA;16B" for raw in raws):
                # Four bytes a pixel, as they are in RGBA.
                picture.tile = [_with_raw_mode(tile, "RGBA") for tile in picture.tile]
                picture.load()
                pairs = np.asarray(picture).astype(np.uint16)
                return pairs[..., ::2] << 8 | pairs[..., 1::2]
            if other:
                swapped = [_swapped(raw) for raw in raws]
                if None in swapped:
                    return None
                picture.tile = [
                    _with_raw_mode(t, str(raw)) for t, raw in zip(picture.tile, swapped, strict=True)
                ]
            picture.load()
            halves.append(np.asarray(picture).astype(np.uint16))
    return halves[0] << 8 | halves[1]


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]  # Pillow's tuple of codec, box, offset and arguments
    return str(arguments if isinstance(arguments, str) else arguments[0])


def _with_raw_mode(tile: Any, raw: str) -> Any:
    arguments = raw if isinstance(tile[3], str) else (raw, *tile[3][1:])
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def _swapped(raw: str) -> str | None:
    base, _, end = raw.partition(";16")
    native = "B" if sys.byteorder == "little" else "L"
    other = {"B": "L", "L": "B", "N": native}.get(end)
    return None if other is None else f"{base};16{other}"
