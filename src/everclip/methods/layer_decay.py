"""Layer-wise learning-rate decay: lower layers learn more slowly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from everclip.contracts import ParamGroup
from everclip.models.clip import Clip
from everclip.models.modules.towers import side_of

_BLOCK = re.compile(r"(?:^|\.)(?:resblocks|blocks|layers|layer|stages|h)\.?(\d+)(?:\.|$)")
_TOP = re.compile(r"(?:^|\.)(?:attnpool|attn_pool|head|pooler)\.")
_BOTTOM = re.compile(
    r"(?:^|\.)(?:conv\d|bn\d|stem|patch_embed|embeddings?|ln_pre|norm_pre"
    r"|class_embedding|positional_embedding|token_embedding|cls_emb|cls_token|pos_embed|reg_token)(?:\.|$)"
)


def depths(clip: Clip) -> dict[str, int]:
    """Return the depth of each parameter of open_clip's model below the top of its tower.

    0: final norm, pooling, projection, logit scale. Then the blocks from the last (1) to the first (L). The layers
    before them (patch and token embeddings, positions, class token, stem) have L + 1. Stages of a ResNet are blocks.
    """
    names = [name for name, _ in clip.named_parameters()]
    blocks: dict[str | None, set[int]] = {}
    for name in names:
        block = _block(name)
        if block is not None:
            blocks.setdefault(side_of(name), set()).add(block)
    order = {tower: sorted(numbers, reverse=True) for tower, numbers in blocks.items()}
    result = {}
    for name in names:
        block, numbers = _block(name), order.get(side_of(name), [])
        if block is not None:
            result[name] = numbers.index(block) + 1
        else:
            result[name] = len(numbers) + 1 if _before_blocks(name) else 0
    return result


def _block(name: str) -> int | None:
    match = _BLOCK.search(name)
    # A patch embedding may have its own stages (hybrid towers); it still comes before the blocks.
    return int(match[1]) if match and "patch_embed." not in name else None


def _before_blocks(name: str) -> bool:
    return side_of(name) is not None and not _TOP.search(name) and bool(_BOTTOM.search(name))


def with_layer_decay(
    groups: Iterable[ParamGroup], clip: Clip, decay: float, prefix: str = ""
) -> tuple[ParamGroup, ...]:
    """Split groups so that each has one factor `decay ** depth` (BEiT, arXiv 2106.08254, appendix; as in timm).

    Groups with equal factor and weight decay are joined, also across towers: there are at most two per layer.

    Args:
        groups: of the method's parameters.
        clip: open_clip's model.
        decay: factor per block downwards; 1 leaves the groups as they are.
        prefix: the prefix of the model's own names in the groups.
    """
    if decay == 1:
        return tuple(groups)
    depth = {prefix + name: below for name, below in depths(clip).items()}
    split: dict[tuple[float, float | None], list[str]] = {}
    for group in groups:
        for name in group.names:
            # Parameters outside the backbone are new and learn at the full rate, like heads.
            scale = group.lr_scale * decay ** depth.get(name, 0)
            split.setdefault((scale, group.weight_decay), []).append(name)
    ordered = sorted(split.items(), key=lambda item: -item[0][0])
    return tuple(ParamGroup(tuple(names), scale, fixed) for (scale, fixed), names in ordered)


def scaled(groups: Iterable[ParamGroup], factor: float) -> tuple[ParamGroup, ...]:
    """Return the groups with all learning rates times a factor."""
    return tuple(g if factor == 1 else replace(g, lr_scale=g.lr_scale * factor) for g in groups)
