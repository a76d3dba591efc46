"""The tokens inside open_clip's vision transformer."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import VisionTransformer

from everclip.models.clip import Clip


def is_vision_transformer(clip: Clip) -> bool:
    """Return whether the image tower is open_clip's vision transformer; others (timm, ResNet) lack these tokens."""
    return isinstance(clip.visual, VisionTransformer)


def early_tokens(clip: Clip, pixels: torch.Tensor, block: int) -> torch.Tensor:
    """Return the tokens `(N, L, W)` that enter a block of open_clip's vision transformer.

    Args:
        clip: the model.
        pixels: `(N, 3, S, S)`.
        block: 0-based; only the blocks before it run.
    """
    tower: Any = clip.visual
    tokens: torch.Tensor = tower._embeds(pixels.to(tower.conv1.weight.dtype))
    stack = tower.transformer
    if not block:
        return tokens
    tokens = tokens if stack.batch_first else tokens.transpose(0, 1).contiguous()
    for layer in stack.resblocks[:block]:
        tokens = layer(tokens)
    return tokens if stack.batch_first else tokens.transpose(0, 1)
