"""Build a ridge head from settings, or from the shape in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from everclip.contracts import Cost
from everclip.methods.rail.base import Ridge
from everclip.methods.rail.dual import Dual
from everclip.methods.rail.expand import Expansion
from everclip.methods.rail.memory_check import require_memory
from everclip.methods.rail.primal import Recursive, Sums
from everclip.methods.rail.settings import RailSettings

STATE = ("gram", "targets", "inverse", "labels")
"""Buffers that are only needed to learn."""


def build_head(settings: RailSettings, shape: Mapping[str, int], seed: int) -> Ridge:
    """Build an empty head.

    Args:
        settings: form, expansion, ridge.
        shape: `inputs` and `width`; for a stored head also `classes`, and for the dual form `stored` and `solved`.
        seed: decides the random expansion.

    Raises:
        ConfigError: if it does not fit in memory.
    """
    inputs, width = shape["inputs"], shape["width"]
    head: Ridge
    if settings.form == "dual":
        stored = shape.get("stored", 0)
        head = Dual(inputs, stored, settings.penalty(width), settings.gamma, settings.limit)
        head.weights = torch.zeros(shape.get("solved", 0), 0, dtype=torch.float64)
    else:
        require_memory(width)
        expansion = Expansion(settings.expansion, inputs, width, settings.gamma, seed)
        kind = Sums if settings.update == "sums" else Recursive
        head = kind(expansion, width, settings.penalty(width))
    head.widen(shape.get("classes", 0))
    return head


def with_head(cost: Cost, head: Ridge | None, settings: RailSettings) -> Cost:
    """Add the storage and computation of a head to a cost.

    Args:
        cost: of everything else.
        head: the head; `None` before the first task.
        settings: decide what a task will add.
    """
    if head is None:
        # A plan must include a large fixed width; a width that depends on the data is known with the first task.
        square = settings.dimension**2 if settings.form == "primal" and settings.dimension != "auto" else 0
        cost = replace(cost, stored_parameters=cost.stored_parameters + square, bytes=cost.bytes + 8 * square)
    buffers = [] if head is None else list(head.buffers())
    used = 0 if head is None else sum(t.numel() for name, t in head.named_buffers() if name not in STATE)
    return replace(
        cost,
        stored_parameters=cost.stored_parameters + sum(t.numel() for t in buffers),
        active_parameters=cost.active_parameters + used,
        bytes=cost.bytes + sum(t.numel() * t.element_size() for t in buffers),
        extra_per_image="none" if head is None else f"{used:,} products of the regression",
        growth_per_task=_growth(head, settings),
    )


def _growth(head: Ridge | None, settings: RailSettings) -> str:
    if settings.form == "dual":
        return "every sample's feature (4 bytes per number), and 8 bytes per sample and class"
    width = "D" if head is None else f"{len(head.weights):,}"
    per_class = 2 if settings.update == "sums" else 1
    once = "8 D^2" if head is None else f"{8 * len(head.weights) ** 2:,}"
    return f"{8 * per_class} x {width} bytes per new class; {once} bytes once, in every checkpoint"
