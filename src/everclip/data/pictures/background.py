"""The background of transparent images: white, black or another colour, so that the drawing stays visible.

An image with transparency is composited on a background before a model sees it. White is usual; a white drawing would
vanish on it. `auto` decides for each image by its own pixels: white, unless
almost no visible pixel differs from white and more pixels differ from black. A file thus gives the same pixels in
every data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageColor

if TYPE_CHECKING:  # numpy is loaded with the first image: settings are read without it
    import numpy as np
    import numpy.typing as npt

AUTO = "auto"

_STANDS_OUT = 32
"""Levels of 255 by which a pixel must differ from the background in one channel to be seen."""

_ENOUGH = 0.02
"""Share of the visible pixels that must stand out against white."""


@dataclass(frozen=True)
class Flattened:
    """An image composited on a background.

    Attributes:
        picture: RGB.
        background: the colour's name; empty where nothing is transparent.
        blank: whether no pixel of the image differs from the background.
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


def flatten(picture: Image.Image, background: str = AUTO) -> Flattened:
    """Composite an image on a background.

    Args:
        picture: RGBA, upright.
        background: `auto` or a colour.
    """
    import numpy as np

    pixels = np.asarray(picture)
    alpha = pixels[..., 3]
    if alpha.min() == 255:
        return Flattened(picture.convert("RGB"), "", False)
    if background != AUTO:
        return Flattened(_composed(picture, background), background, _visible_share(pixels, background) == 0)
    on_white = _visible_share(pixels, "white")
    if on_white < _ENOUGH and _visible_share(pixels, "black") > on_white:
        return Flattened(_composed(picture, "black"), "black", False)
    return Flattened(_composed(picture, "white"), "white", on_white == 0)


def _composed(picture: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture).convert("RGB")


def _visible_share(pixels: npt.NDArray[np.uint8], colour: str) -> float:
    """Return the share of the visible pixels of `(H, W, 4)` that stand out against the background."""
    import numpy as np

    alpha = pixels[..., 3]
    apart = np.zeros(alpha.shape, np.uint8)
    for channel, ground in enumerate(ImageColor.getrgb(colour)[:3]):
        values = pixels[..., channel]
        np.maximum(apart, np.maximum(values, ground) - np.minimum(values, ground), out=apart)
    # The visible difference is weighted by alpha.
    seen = apart.astype(np.uint16) * alpha >= _STANDS_OUT * 255
    return float(seen.sum()) / max(1, int((alpha > 0).sum()))
