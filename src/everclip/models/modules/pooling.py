"""Which token of a text open_clip's text towers pool."""

from __future__ import annotations

from torch import nn


def pooling(root: nn.Module) -> str:
    """Return how a text tower pools: `argmax`, `eos`, `first`, `last` or `none`.

    Args:
        root: the text tower; of open_clip's `CLIP`, whose attributes are called otherwise, the model itself.
    """
    return str(getattr(root, "text_pool_type", None) or getattr(root, "pool_type", "argmax"))


def end_id(root: nn.Module) -> int | None:
    """Return the id of the token that ends a text; `None` where the tower names none."""
    found = getattr(root, "text_eos_id", None)
    found = getattr(root, "eos_id", None) if found is None else found
    return None if found is None else int(found)
