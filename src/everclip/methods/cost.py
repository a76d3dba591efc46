"""What a method costs, counted from the module itself and from what it keeps beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everclip.contracts import Cost
from everclip.models.modules.grow import extra_cost

if TYPE_CHECKING:
    from everclip.methods.base import Method


def counted(method: Method, trainable: int, teachers: int, growth: str) -> Cost:
    """Count parameters and bytes.

    Args:
        method: whose parameters and extra tensors are counted.
        trainable: how many parameters train.
        teachers: how many parameters frozen copies hold.
        growth: what a task adds, for people.
    """
    weights = list(method.parameters())
    kept = list(method.extra_tensors().values())
    tensors = (*weights, *kept)
    return Cost(
        trainable_parameters=trainable,
        stored_parameters=teachers + sum(t.numel() for t in tensors),
        active_parameters=sum(p.numel() for p in weights),
        bytes=weights[0].element_size() * teachers + sum(t.numel() * t.element_size() for t in tensors),
        buffer_samples=0 if method.buffer is None else len(method.buffer),
        extra_per_image=extra_cost(method.backbone.clip),
        growth_per_task=growth,
    )
