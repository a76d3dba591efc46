"""Encode a large batch chunk by chunk, with the gradients of the whole batch (gradient caching).

A contrastive loss compares every image with every text, so its batch cannot be cut into smaller steps. But a sample's
embedding depends on no other sample: each chunk is encoded without keeping what its backward pass needs, the loss sees
all embeddings, and each chunk is encoded a second time when its gradient arrives. Memory holds one chunk and all
embeddings; gradients are those of the whole batch, up to rounding. The idea is that of GradCache (Gao et al., 2021,
arXiv 2101.06983), done by torch's checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils.checkpoint import checkpoint

from everclip.models.clip import Clip
from everclip.models.modules.short_texts import short_length, short_texts

Encode = Callable[[torch.Tensor], torch.Tensor]


def encode_in_chunks(encode: Encode, inputs: torch.Tensor, chunk: int | None, clip: Clip) -> torch.Tensor:
    """Return `encode(inputs)`, computed `chunk` samples at a time, with gradients or without.

    Args:
        encode: inputs `(N, ...)` to embeddings `(N, D)`; each row depends on its own input only.
        inputs: pixels or token ids.
        chunk: samples at a time; `None`: all at once.
        clip: the model; texts that are encoded without padding now are encoded so the second time, too.
    """
    if chunk is None or len(inputs) <= chunk:
        return encode(inputs)
    chunks = torch.split(inputs, chunk)
    if not torch.is_grad_enabled():
        return torch.cat([encode(part) for part in chunks])
    length = short_length(clip)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), short_texts(clip, length)

    # Random draws inside the towers (dropout of patches) are repeated the second time.
    return torch.cat([checkpoint(encode, part, use_reentrant=False, context_fn=contexts) for part in chunks])
