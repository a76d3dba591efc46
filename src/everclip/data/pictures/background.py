"""The background of transparent pictures: white, black or another colour, so that the drawing stays visible.

A picture with transparency is laid on a background before a model sees it. White is usual; a white drawing would
vanish on it. `auto` decides for each picture by its own pixels: white, unless nearly nothing of what is visible stands
out against white and more of it stands out against black. So a file gives the same pixels in every data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageColor

if TYPE_CHECKING:  # numpy is loaded with the first picture: settings are read without it
    import numpy as np
    import numpy.typing as npt

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
                f"expected auto, white, black or a colour such as '#808080' ({error})"
            ) from error
    return name


def lay(picture: Image.Image, background: str = AUTO) -> Laid:
    """Lay a picture on a background.

    Args:
        picture: RGBA, upright.
        background: `auto` or a colour.
    """
    import numpy as np

    pixels = np.asarray(picture)
    alpha = pixels[..., 3]
    if alpha.min() == 255:
        return Laid(picture.convert("RGB"), "", False)
    if background != AUTO:
        return Laid(_on(picture, background), background, _seen(pixels, background) == 0)
    on_white = _seen(pixels, "white")
    if on_white < _ENOUGH and _seen(pixels, "black") > on_white:
        return Laid(_on(picture, "black"), "black", False)
    return Laid(_on(picture, "white"), "white", on_white == 0)


def _on(picture: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture).convert("RGB")


def _seen(pixels: npt.NDArray[np.uint8], colour: str) -> float:
    """Return the share of the visible pixels of `(H, W, 4)` that stand out against the background."""
    import numpy as np

    alpha = pixels[..., 3]
    apart = np.zeros(alpha.shape, np.uint8)
    for channel, ground in enumerate(ImageColor.getrgb(colour)[:3]):
        values = pixels[..., channel]
        np.maximum(apart, np.maximum(values, ground) - np.minimum(values, ground), out=apart)
    # What shows through is the difference weighted by alpha.
    seen = apart.astype(np.uint16) * alpha >= _STANDS_OUT * 255
    return float(seen.sum()) / max(1, int((alpha > 0).sum()))
