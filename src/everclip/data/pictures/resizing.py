"""Resize an image of any shape to the square input of an image tower, as the model's own transform does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the image."""

ResizeMode = Literal["shortest", "longest", "squash"]

FILTERS = {"bilinear": Image.Resampling.BILINEAR}
"""Interpolations by open_clip's names; every other name means bicubic, as in open_clip."""


@dataclass(frozen=True)
class Resizing:
    """The resizing of open_clip's evaluation transform (`PreprocessCfg`).

    Attributes:
        mode: `squash` resizes the whole image to the square; `shortest` resizes the shorter side and keeps the
            central square; `longest` resizes the longer side and pads.
        interpolation: `bicubic` or `bilinear`.
        fill: grey level (or red, green and blue) of the padding.
    """

    mode: ResizeMode = "shortest"
    interpolation: str = "bicubic"
    fill: int | tuple[int, ...] = 0

    def visible(self, width: int, height: int) -> Box:
        """Return the part of an image that the model sees."""
        if self.mode != "shortest":
            return (0.0, 0.0, float(width), float(height))
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side)

    def filled(self, width: int, height: int, size: int) -> tuple[int, int]:
        """Return width and height that the visible part fills in a square of `size` pixels."""
        if self.mode != "longest":
            return (size, size)
        longer = max(width, height)
        return (max(1, round(width / (longer / size))), max(1, round(height / (longer / size))))

    def fitted(self, picture: Image.Image, box: Box, size: int) -> Image.Image:
        """Return a part of an RGB image as the model would see it: `size` x `size`, padded where the mode pads."""
        width, height = self.filled(*picture.size, size)
        resampling = FILTERS.get(self.interpolation, Image.Resampling.BICUBIC)
        resized = picture.resize((width, height), resampling, box=box)
        if (width, height) == (size, size):
            return resized
        fill = (self.fill,) * 3 if isinstance(self.fill, int) else tuple(self.fill)
        square = Image.new("RGB", (size, size), fill)
        square.paste(resized, ((size - width) // 2, (size - height) // 2))
        return square


OPEN_CLIP = Resizing()
"""The default of open_clip."""
