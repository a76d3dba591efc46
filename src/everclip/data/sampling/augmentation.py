"""Augmentation of training images; the random draws depend on the sample alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from everclip.config import AugmentConfig
from everclip.data.pictures.resizing import OPEN_CLIP, Box, Resizing

ATTEMPTS = 10
"""Crops that torchvision's `RandomResizedCrop` draws before it takes the central one."""

Draws = npt.NDArray[np.float64]
"""Numbers in [0, 1)."""


def augment(
    picture: Image.Image,
    size: int,
    config: AugmentConfig,
    draw: np.random.Generator,
    resizing: Resizing = OPEN_CLIP,
) -> Image.Image:
    """Crop, resize, turn, flip and recolour an image.

    Args:
        picture: RGB, any size.
        size: side of the result in pixels.
        config: kind of crop, and strengths.
        draw: the sample's own generator; the number of draws does not depend on the outcome.
        resizing: how the model's own transform fits the image into the square.

    Returns:
        RGB image of `size` x `size`.
    """
    unit = draw.random(12)
    ground = picture.getpixel((0, 0))
    assert isinstance(ground, tuple)  # RGB
    if config.kind == "random-resized-crop":
        box = random_resized_box(*picture.size, config, draw.random((ATTEMPTS, 4)))
        result = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    else:
        result = resizing.fitted(picture, view_box(picture, config, resizing, unit[:4]), size)
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


def view_box(picture: Image.Image, config: AugmentConfig, resizing: Resizing, unit: Draws) -> Box:
    """Return a crop of the part that the model sees; its aspect ratio is relative to that part."""
    first_x, first_y, last_x, last_y = resizing.visible(*picture.size)
    width, height = last_x - first_x, last_y - first_y
    area = config.crop_min + (1 - config.crop_min) * unit[0]
    ratio = config.ratio ** (2 * unit[1] - 1)
    crop_w = min(width, width * np.sqrt(area * ratio))
    crop_h = min(height, height * np.sqrt(area / ratio))
    left, top = first_x + unit[2] * (width - crop_w), first_y + unit[3] * (height - crop_h)
    return (float(left), float(top), float(left + crop_w), float(top + crop_h))


def random_resized_box(width: int, height: int, config: AugmentConfig, unit: Draws) -> Box:
    """Return the crop of torchvision's `RandomResizedCrop` in whole pixels, from the draws in `unit`.

    Args:
        width, height: of the image.
        config: `crop_min` is the lower end of torchvision's `scale`, `1 / ratio` and `ratio` are its `ratio`.
        unit: `(10, 4)`: area, aspect ratio, top and left of each attempt.
    """
    for area_at, ratio_at, top_at, left_at in unit:
        area = width * height * (config.crop_min + (1 - config.crop_min) * area_at)
        ratio = math.exp((2 * ratio_at - 1) * math.log(config.ratio))
        crop_w, crop_h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            top, left = int(top_at * (height - crop_h + 1)), int(left_at * (width - crop_w + 1))
            return (left, top, left + crop_w, top + crop_h)
    # No crop of these areas and shapes fits: the largest central one whose shape is allowed.
    crop_w, crop_h = width, height
    if width / height < 1 / config.ratio:
        crop_h = round(width * config.ratio)
    elif width / height > config.ratio:
        crop_w = round(height * config.ratio)
    left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return (left, top, left + crop_w, top + crop_h)


def _zoom_out(picture: Image.Image, size: int, ground: tuple[int, ...], unit: Draws) -> Image.Image:
    side = max(1, round(size * (0.5 + 0.5 * unit[0])))
    canvas = Image.new("RGB", (size, size), ground)
    place = (int(unit[1] * (size - side + 1)), int(unit[2] * (size - side + 1)))
    canvas.paste(picture.resize((side, side), Image.Resampling.BICUBIC), place)
    return canvas


def _recolour(picture: Image.Image, config: AugmentConfig, unit: Draws) -> Image.Image:
    if config.colour:
        picture = _enhanced(picture, *(1 + (2 * unit[:3] - 1) * config.colour).tolist())
    if config.hue:
        hue, saturation, value = picture.convert("HSV").split()
        shift = int(np.round((2 * unit[3] - 1) * config.hue * 255))
        table = [(level + shift) % 256 for level in range(256)]
        picture = Image.merge("HSV", (hue.point(table), saturation, value)).convert("RGB")
    if unit[4] < config.grey:
        picture = picture.convert("L").convert("RGB")
    return picture


def _enhanced(picture: Image.Image, brightness: float, contrast: float, colour: float) -> Image.Image:
    """Return the pixels of Pillow's `ImageEnhance.Brightness`, `Contrast` and `Color` in turn, in 0.7 times the time.

    Pillow sums the histogram for the mean grey level in Python, and makes a grey image of it before one in RGB.
    """
    picture = Image.blend(Image.new("RGB", picture.size), picture, brightness)
    total = int(np.asarray(picture.convert("L")).sum(dtype=np.uint64))
    mean = int(total / (picture.width * picture.height) + 0.5)
    picture = Image.blend(Image.new("RGB", picture.size, (mean, mean, mean)), picture, contrast)
    return Image.blend(picture.convert("L").convert("RGB"), picture, colour)
