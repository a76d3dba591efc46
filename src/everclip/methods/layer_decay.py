"""Layer-wise learning-rate decay: the lower a layer, the more slowly it learns."""

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
    """Return how far below the top of its tower each parameter of open_clip's model lies.

    0: final norm, pooling, projection, logit scale. Then the blocks from the last (1) to the first (L); what stands
    before them (patch and token embeddings, positions, class token, stem) is at L + 1. Stages of a ResNet are blocks.
    """
    names = [name for name, _ in clip.named_parameters()]
    blocks: dict[str | None, set[int]] = {}
    for name in names:
        block = _block(name)
        if block is not None:
            blocks.setdefault(side_of(name), set()).add(block)
    order = {tower: sorted(found, reverse=True) for tower, found in blocks.items()}
    result = {}
    for name in names:
        block, places = _block(name), order.get(side_of(name), [])
        if block is not None:
            result[name] = places.index(block) + 1
        else:
            result[name] = len(places) + 1 if _below(name) else 0
    return result


def _block(name: str) -> int | None:
    found = _BLOCK.search(name)
    # A patch embedding may have stages of its own (hybrid towers); it still stands before the blocks.
    return int(found[1]) if found and "patch_embed." not in name else None


def _below(name: str) -> bool:
    return side_of(name) is not None and not _TOP.search(name) and bool(_BOTTOM.search(name))


def layered(
    groups: Iterable[ParamGroup], clip: Clip, decay: float, prefix: str = ""
) -> tuple[ParamGroup, ...]:
    """Split groups so that each has one factor `decay ** depth` (BEiT, arXiv 2106.08254, appendix; as in timm).

    Groups of equal factor and weight decay are joined, over towers too: there are at most two per layer.

    Args:
        groups: of the method's parameters.
        clip: open_clip's model.
        decay: factor per block downwards; 1 leaves the groups as they are.
        prefix: what stands before the model's own names in the groups.
    """
    if decay == 1:
        return tuple(groups)
    depth = {prefix + name: below for name, below in depths(clip).items()}
    found: dict[tuple[float, float | None], list[str]] = {}
    for group in groups:
        for name in group.names:
            # What a method grew outside the backbone is new, and learns as heads do.
            scale = group.lr_scale * decay ** depth.get(name, 0)
            found.setdefault((scale, group.weight_decay), []).append(name)
    ordered = sorted(found.items(), key=lambda item: -item[0][0])
    return tuple(ParamGroup(tuple(names), scale, fixed) for (scale, fixed), names in ordered)


def scaled(groups: Iterable[ParamGroup], factor: float) -> tuple[ParamGroup, ...]:
    """Return the groups with all learning rates times a factor."""
    return tuple(g if factor == 1 else replace(g, lr_scale=g.lr_scale * factor) for g in groups)
