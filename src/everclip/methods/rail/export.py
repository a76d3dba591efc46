"""Convert the regression of `rail` for an export; `everclip.models.exported_classifier` reads it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from everclip.contracts import ClassEntry, ClassHead
from everclip.methods.rail.base import Ridge
from everclip.methods.rail.dual import Dual
from everclip.methods.rail.primal import Recursive, Sums
from everclip.methods.rail.settings import RailSettings


def head_to_export(
    head: Ridge,
    settings: RailSettings,
    entries: tuple[ClassEntry, ...],
    answers: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> ClassHead:
    """Return the class head of a learned regression for an export.

    Args:
        head: the solved head.
        settings: of the method.
        entries: the learned classes, in the order of columns.
        answers: see `ClassHead`.
    """
    tensors = {"weights": head.weights}
    rule = {
        "format": 1,
        "kind": "ridge regression fused with zero-shot (RAIL, arXiv 2406.18868)",
        "features": "kernel" if isinstance(head, Dual) else settings.expansion,
        "fusion": settings.fusion,
        "templates": list(entries[0].templates) if entries else ["{}"],
        "classes": [{"key": e.key, "name": e.name, "templates": list(e.templates)} for e in entries],
    }
    if isinstance(head, Dual):
        tensors["samples"] = head.samples
        rule["gamma"] = head.gamma
    elif isinstance(head, Sums | Recursive):
        tensors |= dict(head.expansion.named_buffers())
    return ClassHead(tensors, rule, entries, answers)
