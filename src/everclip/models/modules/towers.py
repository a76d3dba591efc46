"""The transformer towers of open_clip's models, as grown modules need them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from open_clip.model import CLIP
from open_clip.transformer import (
    ResidualAttentionBlock,
    TextTransformer,
    Transformer,
    VisionTransformer,
)
from torch import nn

from everclip.errors import ConfigError
from everclip.models.clip import Clip

Side = Literal["image", "text"]
SIDES: tuple[Side, ...] = ("image", "text")

FITS = "Instead, the slot `trainable` takes whole towers, block ranges, norms, biases and projections of this model."


@dataclass(frozen=True)
class Tower:
    """A transformer tower.

    Attributes:
        side: `image` or `text`.
        root: the module with the tower's embeddings: `visual`, `text`, or the CLIP itself.
        transformer: the stack of blocks.
        blocks: open_clip's residual attention blocks, first to last.
    """

    side: Side
    root: VisionTransformer | TextTransformer | CLIP
    transformer: Transformer
    blocks: tuple[ResidualAttentionBlock, ...]

    @property
    def batch_first(self) -> bool:
        """Whether blocks take `(N, L, W)` rather than `(L, N, W)`."""
        return bool(self.transformer.batch_first)

    @property
    def width(self) -> int:
        """Size of a token's vector, W."""
        return int(self.transformer.width)

    @property
    def visual(self) -> VisionTransformer:
        """The root of an image tower."""
        assert isinstance(self.root, VisionTransformer)
        return self.root

    @property
    def text(self) -> TextTransformer | CLIP:
        """The root of a text tower."""
        assert not isinstance(self.root, VisionTransformer)
        return self.root


def tower_of(clip: Clip, side: Side) -> Tower:
    """Return a transformer tower of open_clip's `CLIP` or `CustomTextCLIP`.

    Raises:
        ConfigError: if the tower is not open_clip's own transformer (but a ResNet, a timm or Hugging Face model).
    """
    root = tower_root(clip, side)
    transformer = getattr(root, "transformer", None)
    if not isinstance(root, VisionTransformer | TextTransformer | CLIP) or not isinstance(
        transformer, Transformer
    ):
        raise ConfigError(
            f"method.trainable: modules cannot grow inside this {side} tower: {type(root).__name__} is not open_clip's "
            f"own transformer, the only kind whose blocks they fit. {FITS}"
        )
    return Tower(side, root, transformer, tuple(transformer.resblocks))


def tower_root(clip: Clip, side: Side) -> VisionTransformer | TextTransformer | Clip:
    """Return the module that holds a tower; for the text tower of open_clip's `CLIP`, the model itself."""
    if side == "image":
        return clip.visual
    text: TextTransformer | None = getattr(clip, "text", None)
    return clip if text is None else text


def tower_parts(clip: Clip, side: Side) -> list[nn.Module]:
    """Return the modules of a tower, without those of the other tower."""
    root = tower_root(clip, side)
    if root is not clip:
        return [root]
    return [module for name, module in clip.named_children() if name != "visual"]


def is_frozen(clip: Clip, side: Side) -> bool:
    """Return whether no parameter of a tower requires a gradient."""
    return not any(
        parameter.requires_grad and side_of(name) == side for name, parameter in clip.named_parameters()
    )


def side_of(name: str) -> Side | None:
    """Return the tower that a parameter of a CLIP belongs to, by its name; `None` for the logit scale and bias."""
    if re.match(r"logit_(scale|bias)$", name):
        return None
    return "image" if name.startswith("visual.") else "text"


def plain_name(name: str) -> str:
    """Return the name of a parameter in the model without grown modules."""
    return re.sub(r"parametrizations\.(\w+)\.original$", r"\1", name)
