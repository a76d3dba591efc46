"""The token that open_clip's text towers pool."""

from __future__ import annotations

from torch import nn


def pooling(root: nn.Module) -> str:
    """Return how a text tower pools: `argmax`, `eos`, `first`, `last` or `none`.

    Args:
        root: the text tower; for open_clip's `CLIP`, whose attributes have other names, the model itself.
    """
    return str(getattr(root, "text_pool_type", None) or getattr(root, "pool_type", "argmax"))


def end_id(root: nn.Module) -> int | None:
    """Return the id of the token that ends a text; `None` if the tower does not name it."""
    token = getattr(root, "text_eos_id", None)
    token = getattr(root, "eos_id", None) if token is None else token
    return None if token is None else int(token)
