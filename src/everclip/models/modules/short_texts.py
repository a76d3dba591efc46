"""Encode texts without their padding: a causal text tower does not need the tokens after the one that it pools.

open_clip computes the whole context, 77 tokens for a class name of five. The tokens after the end token influence
neither embeddings nor gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import Transformer
from torch import nn

from everclip.models.clip import Clip
from everclip.models.modules.pooling import end_id, pooling
from everclip.models.modules.prompts import Prompt
from everclip.models.modules.towers import tower_of, tower_root

_LENGTH = "_short_length"
"""The name under which the blocks of a text tower hold the number of tokens that they are given."""


def needed_tokens(clip: Clip, tokens: torch.Tensor) -> int | None:
    """Return the number of tokens that the longest text needs; `None` if all are needed (the tower is not causal).

    Args:
        clip: the model.
        tokens: ids `(N, L)`; should be on the CPU, because their values are read.
    """
    root: Any = tower_root(clip, "text")
    if not isinstance(getattr(root, "transformer", None), Transformer):
        return None
    pool = pooling(root)
    prompted = any(isinstance(module, Prompt) for module in root.modules())
    causal = getattr(root, "attn_mask", None) is not None and getattr(root, "cls_emb", None) is None
    if prompted or not causal or pool not in ("argmax", "eos"):
        return None
    if pool == "argmax":
        ends = tokens.argmax(dim=1)
    else:
        end = end_id(root)
        if end is None or not bool((tokens == end).any(dim=1).all()):
            return None
        ends = (tokens == end).int().argmax(dim=1)
    return int(ends.max()) + 1


@contextmanager
def short_texts(clip: Clip, count: int | None) -> Iterator[None]:
    """Give the text tower's blocks only the first `count` tokens; embeddings stay the same up to rounding.

    Args:
        clip: the model.
        count: the result of `needed_tokens` for all texts that are encoded inside the context; `None`: all tokens.
    """
    if count is None:
        yield
        return
    lengths: list[int] = []

    def cut(stack: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        lengths.append(inputs[0].shape[1])
        mask = named.get("attn_mask")
        shorter = None if mask is None else mask[..., :count, :count]
        return (inputs[0][:, :count], *inputs[1:]), {**named, "attn_mask": shorter}

    def fill(stack: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return F.pad(output, (0, 0, 0, lengths.pop() - output.shape[1]))

    transformer = tower_of(clip, "text").transformer
    outer = vars(transformer).get(_LENGTH)
    vars(transformer)[_LENGTH] = count
    handles = (
        transformer.register_forward_pre_hook(cut, with_kwargs=True),
        transformer.register_forward_hook(fill),
    )
    try:
        yield
    finally:
        vars(transformer)[_LENGTH] = outer
        for handle in handles:
            handle.remove()


def short_length(clip: Clip) -> int | None:
    """Return the number of tokens that the text tower's blocks are given now; `None`: all."""
    root: Any = tower_root(clip, "text")
    transformer = getattr(root, "transformer", None)
    length: int | None = None if transformer is None else vars(transformer).get(_LENGTH)
    return length
