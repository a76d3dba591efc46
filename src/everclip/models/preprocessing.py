"""Decide the preprocessing of images from the model's configuration, the user's settings and open_clip's defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transform import PreprocessCfg, ResizeKeepRatio, image_transform_v2

from everclip.config import PreprocessConfig
from everclip.data.pictures.images import PixelFormat
from everclip.data.pictures.resizing import Resizing
from everclip.errors import ConfigError
from everclip.models.clip import Clip

_STATED = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Preprocessing:
    """A complete preprocessing configuration, its transform, and notes on assumptions."""

    config: dict[str, Any]
    transform: Callable[[Any], torch.Tensor]
    pixels: PixelFormat
    notes: tuple[str, ...]


class _Longest(ResizeKeepRatio):  # type: ignore[misc]  # open_clip has no types
    """open_clip's resizing of the longer side, with at least one pixel for the shorter side of a very thin image."""

    @staticmethod
    def get_params(*arguments: Any, **options: Any) -> list[int]:
        """Return height and width."""
        return [max(1, pixels) for pixels in ResizeKeepRatio.get_params(*arguments, **options)]


def side_of(clip: Clip, where: str) -> int:
    """Return the side in pixels of the square input of an image tower.

    Raises:
        ConfigError: if the input is not square, or the tower was made for another size.
    """
    size: Any = clip.visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    if height != width:
        raise ConfigError(
            f"backbone: {where} takes images of {width} x {height}; everclip only supports square images."
        )
    embed = getattr(getattr(clip.visual, "trunk", None), "patch_embed", None)
    fixed = getattr(embed, "img_size", None)  # timm's transformers would only fail at the first image
    if fixed is not None and getattr(embed, "strict_img_size", True) and tuple(fixed) != (height, width):
        raise ConfigError(
            f"backbone: {where}: vision_cfg.image_size is {height}, but the tower is made for images of {fixed[0]}, "
            f"and its position embeddings cannot be interpolated: set backbone.image_size={fixed[0]}, or use the "
            "architecture for the other size."
        )
    return int(height)


def build_preprocessing(
    clip: Clip, stored: dict[str, Any] | None, wanted: PreprocessConfig | None, where: str, resized: bool
) -> Preprocessing:
    """Decide the preprocessing of images.

    Args:
        clip: the model, whose image tower decides the side.
        stored: preprocessing from the configuration or tag of the weights; `None` if they have none.
        wanted: the user's settings, which take precedence.
        where: the name of the configuration in errors.
        resized: whether the user set another image size than that of the weights.

    Raises:
        ConfigError: if the configuration states another side than that of the image tower.
    """
    side = side_of(clip, where)
    stated = dict(stored or {})
    size = stated.pop("size", side)
    sides = set(size) if isinstance(size, tuple | list) else {size}
    if sides != {side} and not resized:
        raise ConfigError(
            f"backbone: {where}: preprocess_cfg.size is {size}, but the image tower takes {side} pixels; correct the "
            f"one that is wrong, or set backbone.image_size={side}."
        )
    stated |= {} if wanted is None else wanted.model_dump(exclude_none=True)
    notes = []
    assumed = [key for key in _STATED if stated.get(key) is None]
    complete = PreprocessCfg(size=side, **{k: v for k, v in stated.items() if v is not None})
    if assumed:
        values = ", ".join(f"{key} {getattr(complete, key)}" for key in assumed)
        notes.append(f"preprocessing: the weights do not state {values}; open_clip's defaults are assumed")
    mean, std = (tuple(float(v) for v in values) for values in (complete.mean, complete.std))
    document = {**vars(complete), "mean": list(mean), "std": list(std)}
    mode: Any = complete.resize_mode
    resizing = Resizing(mode, complete.interpolation, complete.fill_color)
    transform: Any = image_transform_v2(complete, is_train=False)
    if mode == "longest":
        transform.transforms[0] = _Longest(
            side, longest=1, interpolation=transform.transforms[0].interpolation
        )
    return Preprocessing(document, transform, PixelFormat(side, mean, std, resizing), tuple(notes))
