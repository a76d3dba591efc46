"""How a model's pictures become pixels: its own configuration, what the user set, and what had to be assumed."""

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

_SAID = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Pictures:
    """A complete preprocessing configuration, its transform, and notes on what was assumed."""

    config: dict[str, Any]
    transform: Callable[[Any], torch.Tensor]
    pixels: PixelFormat
    notes: tuple[str, ...]


class _Longest(ResizeKeepRatio):  # type: ignore[misc]  # open_clip has no types
    """open_clip's resizing of the longer side, whose shorter side keeps a pixel however thin the picture is."""

    @staticmethod
    def get_params(*given: Any, **options: Any) -> list[int]:
        """Return height and width."""
        return [max(1, pixels) for pixels in ResizeKeepRatio.get_params(*given, **options)]


def side_of(clip: Clip, where: str) -> int:
    """Return the side in pixels of the pictures an image tower takes.

    Raises:
        ConfigError: if they are not square, which nothing here prepares, or not what the tower can take.
    """
    size: Any = clip.visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    if height != width:
        raise ConfigError(
            f"backbone: {where} takes pictures of {width} x {height}; only square ones are prepared."
        )
    embed = getattr(getattr(clip.visual, "trunk", None), "patch_embed", None)
    fixed = getattr(embed, "img_size", None)  # of timm's transformers, which only fail at the first picture
    if fixed is not None and getattr(embed, "strict_img_size", True) and tuple(fixed) != (height, width):
        raise ConfigError(
            f"backbone: {where}: vision_cfg.image_size is {height}, but the tower is made for pictures of {fixed[0]}, "
            f"and its position embeddings are not interpolated: set backbone.image_size={fixed[0]}, or use the "
            "architecture for the other size."
        )
    return int(height)


def prepare_pictures(
    clip: Clip, found: dict[str, Any] | None, wanted: PreprocessConfig | None, where: str, resized: bool
) -> Pictures:
    """Decide how pictures become pixels.

    Args:
        clip: the model, whose image tower decides the side.
        found: what the weights' configuration or tag says; `None` if nothing does.
        wanted: what the user set, which comes first.
        where: what the configuration is called in errors.
        resized: whether the user set another side than the weights' own.

    Raises:
        ConfigError: if the configuration says another side than the image tower takes.
    """
    side = side_of(clip, where)
    said = dict(found or {})
    size = said.pop("size", side)
    stated = set(size) if isinstance(size, tuple | list) else {size}
    if stated != {side} and not resized:
        raise ConfigError(
            f"backbone: {where}: preprocess_cfg.size is {size}, but the image tower takes {side} pixels; correct the "
            f"one that is wrong, or set backbone.image_size={side}."
        )
    said |= {} if wanted is None else wanted.model_dump(exclude_none=True)
    notes = []
    assumed = [key for key in _SAID if said.get(key) is None]
    complete = PreprocessCfg(size=side, **{k: v for k, v in said.items() if v is not None})
    if assumed:
        values = ", ".join(f"{key} {getattr(complete, key)}" for key in assumed)
        notes.append(
            f"preprocessing: nothing with the weights says {values}; open_clip's defaults are assumed"
        )
    mean, std = (tuple(float(v) for v in values) for values in (complete.mean, complete.std))
    document = {**vars(complete), "mean": list(mean), "std": list(std)}
    mode: Any = complete.resize_mode
    resizing = Resizing(mode, complete.interpolation, complete.fill_color)
    transform: Any = image_transform_v2(complete, is_train=False)
    if mode == "longest":
        transform.transforms[0] = _Longest(
            side, longest=1, interpolation=transform.transforms[0].interpolation
        )
    return Pictures(document, transform, PixelFormat(side, mean, std, resizing), tuple(notes))
