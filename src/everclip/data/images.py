"""From encoded bytes to pixels: bounded decoding, and augmentation whose draws are keyed by the sample."""

from __future__ import annotations

import io
import threading
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, UnidentifiedImageError

from everclip.config import AugmentConfig
from everclip.data.table import Table
from everclip.errors import DataError

MAX_PIXELS = 64_000_000
"""A picture larger than this is refused before it is decoded (a "decompression bomb")."""

MAX_ASPECT = 100
"""Resizing the shorter side to the model's would make the longer one of such a picture fill the memory."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def decode(data: bytes, name: str) -> Image.Image:
    """Decode one picture to RGB; transparency is laid on white.

    Args:
        data: encoded bytes.
        name: what errors call it.

    Raises:
        DataError: if the bytes are no picture of a known format, are truncated, or would be too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise DataError(f"{name}: picture of {width} x {height} pixels; at most {MAX_PIXELS:,} are read.")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise DataError(
                f"{name}: picture of {width} x {height} pixels; sides may differ at most {MAX_ASPECT}-fold."
            )
        if picture.mode.startswith("I"):
            # Pillow clips 16-bit grey at 255 instead of scaling it, which turns such a picture white.
            picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            ground = Image.new("RGBA", picture.size, "white")
            return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
        return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        head = data[:8].hex() if data else "no bytes"
        raise DataError(f"{name}: not a readable picture ({error}; it begins with {head}).") from error


def peek(data: bytes) -> tuple[str, str, int]:
    """Return mode, format and number of frames of encoded bytes that are known to be a picture."""
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    return picture.mode, str(picture.format), int(getattr(picture, "n_frames", 1))


def check_header(data: bytes, name: str) -> None:
    """Look at the first bytes of a picture without decoding it.

    Raises:
        DataError: if they are no picture of a known format.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data), formats=FORMATS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name}: not a picture of a known format ({', '.join(FORMATS)}); it begins with {data[:8].hex()}."
        ) from error


class ImageStore:
    """Decoded pictures of a table, kept in memory up to a bound; safe to use from several threads."""

    def __init__(self, max_bytes: int = 512 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._pictures: dict[tuple[int, int], Image.Image] = {}
        self._lock = threading.Lock()

    def get(self, table: Table, position: int) -> Image.Image:
        """Return the RGB picture at `position`; callers must not change it in place."""
        place = table.place(position)
        picture = self._pictures.get(place)
        if picture is None:
            picture = decode(table.value("image", position), f"{table.name}, id {table.ids[position]}")
            size = picture.width * picture.height * 3
            with self._lock:
                if self._held + size <= self._max_bytes and place not in self._pictures:
                    self._pictures[place] = picture
                    self._held += size
        return picture


@dataclass(frozen=True)
class PixelFormat:
    """What a backbone's image tower takes: side in pixels, and per-channel mean and deviation."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tensor(self, picture: Image.Image) -> torch.Tensor:
        """Return normalised pixels `(3, size, size)`."""
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        pixels = (np.asarray(picture, dtype=np.float32) / np.float32(255) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def augment(picture: Image.Image, size: int, config: AugmentConfig, draw: np.random.Generator) -> Image.Image:
    """Crop, resize, turn, flip and recolour a picture.

    Args:
        picture: RGB, any size.
        size: side of the result in pixels.
        config: strengths.
        draw: the sample's own generator; the same number of draws is taken whatever the outcome.

    Returns:
        RGB picture of `size` x `size`.
    """
    unit = draw.random(12)
    ground = picture.getpixel((0, 0))
    result = _crop(picture, size, config, unit[:4])
    if unit[4] < config.zoom_out:
        result = _zoom_out(result, size, ground, unit[5:8])
    if config.rotate:
        angle = (2 * unit[8] - 1) * config.rotate
        result = result.rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground)
    if unit[9] < config.flip:
        result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if unit[10] < config.blur:
        result = result.filter(ImageFilter.GaussianBlur(float(unit[11]) * 0.03 * size))
    if config.colour or config.hue or config.grey:
        result = _recolour(result, config, draw.random(5))
    return result


def _crop(picture: Image.Image, size: int, config: AugmentConfig, unit: np.ndarray) -> Image.Image:
    width, height = picture.size
    side = min(width, height)
    area = config.crop_min + (1 - config.crop_min) * unit[0]
    ratio = config.ratio ** (2 * unit[1] - 1)
    crop_w = min(width, side * np.sqrt(area * ratio))
    crop_h = min(height, side * np.sqrt(area / ratio))
    left, top = unit[2] * (width - crop_w), unit[3] * (height - crop_h)
    box = (float(left), float(top), float(left + crop_w), float(top + crop_h))
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _zoom_out(picture: Image.Image, size: int, ground: object, unit: np.ndarray) -> Image.Image:
    side = max(1, round(size * (0.5 + 0.5 * unit[0])))
    canvas = Image.new("RGB", (size, size), ground)  # type: ignore[arg-type]
    place = (int(unit[1] * (size - side + 1)), int(unit[2] * (size - side + 1)))
    canvas.paste(picture.resize((side, side), Image.Resampling.BICUBIC), place)
    return canvas


def _recolour(picture: Image.Image, config: AugmentConfig, unit: np.ndarray) -> Image.Image:
    factors = 1 + (2 * unit[:3] - 1) * config.colour
    if config.colour:
        picture = ImageEnhance.Brightness(picture).enhance(float(factors[0]))
        picture = ImageEnhance.Contrast(picture).enhance(float(factors[1]))
        picture = ImageEnhance.Color(picture).enhance(float(factors[2]))
    if config.hue:
        hue, saturation, value = picture.convert("HSV").split()
        shift = int(np.round((2 * unit[3] - 1) * config.hue * 255))
        table = [(level + shift) % 256 for level in range(256)]
        picture = Image.merge("HSV", (hue.point(table), saturation, value)).convert("RGB")
    if unit[4] < config.grey:
        picture = picture.convert("L").convert("RGB")
    return picture
