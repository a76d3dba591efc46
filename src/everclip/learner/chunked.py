"""Encode large batches chunk by chunk (`training.chunk`), if the method and the model allow it."""

from __future__ import annotations

from torch import nn

from everclip.errors import ConfigError
from everclip.methods.base import Method


def set_chunk(method: Method, chunk: int | None) -> None:
    """Let the towers of a method encode at most `chunk` samples at a time where gradients are needed.

    Raises:
        ConfigError: if the method computes more than a sample's input decides, or the model normalises over a batch.
    """
    if chunk is not None:
        if not method.in_chunks:
            raise ConfigError(
                f"training.chunk: {method.preset} does not allow it, because its training step depends on more than "
                "each sample; leave it out, or take a smaller training.batch_size."
            )
        norms = [n for n, m in method.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms:
            raise ConfigError(
                f"training.chunk: this model normalises over the batch ({norms[0]} and {len(norms) - 1} more), so a "
                "sample's embedding depends on the others in its chunk. Leave it out, or take a ViT."
            )
    method.backbone.chunk = chunk
