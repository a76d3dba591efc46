"""What a method costs, counted from the module itself and from what it keeps beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from everclip.contracts import Cost
from everclip.interfaces import HasParameters
from everclip.models.backbone import Backbone
from everclip.models.modules.grow import extra_cost


@dataclass(frozen=True)
class Held:
    """What is held while a task is learned, and not now: what it is -> how many values.

    Attributes:
        copies: frozen models, which checkpoints can do without.
        tensors: what checkpoints hold too.
        uncounted: what depends on data that are not known yet.
    """

    copies: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, int] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many values these are."""
        return sum(self.copies.values()) + sum(self.tensors.values())

    def __str__(self) -> str:
        parts = [f"{name}: {size:,}" for name, size in (self.copies | self.tensors).items()]
        return "; ".join([*parts, *self.uncounted]) or "nothing more"


class Counted(HasParameters, Protocol):
    """What is asked of a method to count what it costs."""

    @property
    def backbone(self) -> Backbone:
        """The CLIP that it trains."""

    @property
    def buffer(self) -> Sized | None:
        """The samples that it keeps; `None` = none."""

    @property
    def teacher_parameters(self) -> int:
        """Parameters of the frozen models that it asks."""

    def extra_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors that it keeps beside its parameters."""

    def held_in_task(self) -> Held:
        """Return what it holds only while it learns."""


def bytes_on_disk(method: Counted, cost: Cost) -> int:
    """Return what a checkpoint inside a task takes without the optimiser's state: copies are made again from it."""
    copies = method.teacher_parameters + sum(method.held_in_task().copies.values())
    return cost.bytes + next(method.parameters()).element_size() * (cost.task_parameters - copies)


def counted(method: Counted, trainable: int, growth: str) -> Cost:
    """Count parameters and bytes.

    Args:
        method: whose parameters, teachers and extra tensors are counted.
        trainable: how many parameters train.
        growth: what a task adds, for people.
    """
    weights = list(method.parameters())
    kept, teachers = list(method.extra_tensors().values()), method.teacher_parameters
    tensors, held = (*weights, *kept), method.held_in_task()
    return Cost(
        trainable_parameters=trainable,
        stored_parameters=teachers + sum(t.numel() for t in tensors),
        active_parameters=sum(p.numel() for p in weights),
        bytes=weights[0].element_size() * teachers + sum(t.numel() * t.element_size() for t in tensors),
        buffer_samples=0 if method.buffer is None else len(method.buffer),
        extra_per_image=extra_cost(method.backbone.clip),
        growth_per_task=growth,
        task_parameters=held.size,
        held_during_task=str(held),
    )
