"""What lies behind transparency: white, black or another colour, so that what is drawn on it stays visible.

A picture with transparency is laid on a background before a model sees it. White is usual; a white drawing would
vanish on it. `auto` decides for each picture by its own pixels: white, unless nearly nothing of what is visible stands
out against white and more of it stands out against black. So a file gives the same pixels in every data set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor

AUTO = "auto"

_STANDS_OUT = 32
"""Levels of 255 by which a pixel must differ from the background in one channel to be seen."""

_ENOUGH = 0.02
"""Share of the visible pixels that must stand out against white."""


@dataclass(frozen=True)
class Laid:
    """A picture laid on a background.

    Attributes:
        picture: RGB.
        background: the colour's name; empty where nothing is transparent.
        blank: whether nothing of the picture stands out against the background.
    """

    picture: Image.Image
    background: str
    blank: bool


def check_colour(name: str) -> str:
    """Return `name` if it is `auto` or a colour such as `black`, `#808080` or `rgb(10,20,30)`.

    Raises:
        ValueError: if it is neither.
    """
    if name != AUTO:
        try:
            if len(ImageColor.getrgb(name)) != 3:
                raise ValueError("it has transparency itself")
        except ValueError as error:
            raise ValueError(
                f"expected auto, white, black or a colour such as '#808080', found {name!r} ({error})"
            ) from error
    return name


def lay(picture: Image.Image, background: str = AUTO) -> Laid:
    """Lay a picture on a background.

    Args:
        picture: RGBA, upright.
        background: `auto` or a colour.
    """
    pixels = np.asarray(picture)
    alpha = pixels[..., 3]
    if alpha.min() == 255:
        return Laid(picture.convert("RGB"), "", False)
    if background != AUTO:
        result = _on(picture, background)
        return Laid(result, background, _seen(result, alpha, background) == 0)
    white = _on(picture, "white")
    on_white = _seen(white, alpha, "white")
    if on_white < _ENOUGH:
        black = _on(picture, "black")
        if _seen(black, alpha, "black") > on_white:
            return Laid(black, "black", False)
    return Laid(white, "white", on_white == 0)


def _on(picture: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture).convert("RGB")


def _seen(laid: Image.Image, alpha: np.ndarray, colour: str) -> float:
    """Return the share of the visible pixels that stand out against the background."""
    visible = alpha > 0
    count = int(visible.sum())
    if not count:
        return 0.0
    ground = np.asarray(ImageColor.getrgb(colour)[:3], np.int16)
    apart = np.abs(np.asarray(laid)[visible].astype(np.int16) - ground).max(axis=1)
    return float((apart >= _STANDS_OUT).sum()) / count
