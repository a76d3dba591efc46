"""Rasterise, scale, compare and encode drawings of emoji; `build_emoji.py` and `build_drawings.py` use this."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

SIZE, MARGIN = 64, 2
TOLERANCE = 16  # drawings whose pixels differ by no more than this (of 255) are one picture to any model
SVG_SIZE = 256
Pixels = npt.NDArray[np.int16]


def rasterise(svg: str, width: int = SVG_SIZE, height: int = SVG_SIZE) -> Image.Image:
    """Draw an SVG on white, without the fonts of the system.

    Raises:
        ModuleNotFoundError: If `resvg_py` is not installed.
    """
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("resvg_py is missing: pip install 'everclip[build]'") from error
    data = resvg_py.svg_to_bytes(
        svg_string=svg, width=width, height=height, background="#ffffff", skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(data))).convert("RGB")


def fit(image: Image.Image, border: float) -> Image.Image:
    """Scale a drawing on white, less at most `border` of blank canvas, onto a square with a margin."""
    width, height = image.size
    ink = ImageOps.invert(image).getbbox() or (0, 0, width, height)
    cut = min(round(border * width), ink[0], ink[1], width - ink[2], height - ink[3])
    part = image.crop((cut, cut, width - cut, height - cut))
    scale = (SIZE - 2 * MARGIN) / max(part.size)
    small = part.resize((round(part.width * scale), round(part.height * scale)), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIZE, SIZE), "white")
    square.paste(small, ((SIZE - small.width) // 2, (SIZE - small.height) // 2))
    return square


def encode(image: Image.Image) -> bytes:
    """Encode without loss, as WebP or PNG, whichever is smaller."""
    webp, png = io.BytesIO(), io.BytesIO()
    image.save(webp, "WEBP", lossless=True, quality=100, method=4)  # 6: 1 % smaller, 20 times slower
    image.save(png, "PNG", optimize=True)
    return min(webp.getvalue(), png.getvalue(), key=len)


def same_pictures(drawings: Mapping[str, Image.Image]) -> list[tuple[str, str, int]]:
    """List the pairs of one style whose pixels differ by at most `TOLERANCE`, with the difference."""
    ids = list(drawings)
    pixels = _pixels(list(drawings.values()))
    means = _patch_means(pixels)
    pairs = []
    for a in range(len(ids) - 1):
        for b, worst in _near(pixels[a], means[a], pixels[a + 1 :], means[a + 1 :]):
            pairs.append((ids[a], ids[a + 1 + b], worst))
    return pairs


def equal_drawings(drawings: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[list[int]]:
    """List, for each of `drawings`, the places in `others` whose pixels differ by at most `TOLERANCE`."""
    if not others:
        return [[] for _ in drawings]
    pixels = _pixels(others)
    means = _patch_means(pixels)
    found = []
    for drawing in drawings:
        one = _pixels([drawing])
        found.append([place for place, _ in _near(one[0], _patch_means(one)[0], pixels, means)])
    return found


def _pixels(images: Sequence[Image.Image]) -> Pixels:
    """Return pixels `(N, SIZE, SIZE, 3)` that can be subtracted."""
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def _patch_means(pixels: Pixels) -> npt.NDArray[np.float64]:
    """Return the means over 8x8 patches `(N, 192)`.

    A mean differs by no more than its worst pixel, so means rule out almost every pair cheaply.
    """
    count = len(pixels)
    patches = pixels.reshape(count, 8, SIZE // 8, 8, SIZE // 8, 3)
    means: npt.NDArray[np.float64] = patches.mean(axis=(2, 4)).reshape(count, -1)
    return means


def _near(
    one: Pixels, mean: npt.NDArray[np.float64], pixels: Pixels, means: npt.NDArray[np.float64]
) -> list[tuple[int, int]]:
    """List the places in `pixels` that differ from `one` by at most `TOLERANCE`, with the difference."""
    places = np.flatnonzero(np.abs(means - mean).max(axis=1) <= TOLERANCE)
    worst = [(int(place), int(np.abs(one - pixels[place]).max())) for place in places]
    return [(place, difference) for place, difference in worst if difference <= TOLERANCE]
