"""Count the cost of a method, from the module itself and from what it stores beside it."""

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
class TaskMemory:
    """What a method needs only while it learns a task: description -> number of values.

    Attributes:
        copies: frozen models, which checkpoints do not store.
        tensors: tensors, which checkpoints store.
        uncounted: descriptions of values whose number depends on data that are not known yet.
    """

    copies: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, int] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of values."""
        return sum(self.copies.values()) + sum(self.tensors.values())

    def __str__(self) -> str:
        parts = [f"{name}: {size:,}" for name, size in (self.copies | self.tensors).items()]
        return "; ".join([*parts, *self.uncounted]) or "nothing more"


class Countable(HasParameters, Protocol):
    """The part of a method that is needed to count its cost."""

    @property
    def backbone(self) -> Backbone:
        """The CLIP."""

    @property
    def buffer(self) -> Sized | None:
        """The samples that it stores; `None` without replay."""

    @property
    def teacher_parameters(self) -> int:
        """The number of parameters of its frozen teachers."""

    def extra_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors that it stores beside its parameters."""

    def task_memory(self) -> TaskMemory:
        """Return what it needs only while it learns a task."""


def bytes_on_disk(method: Countable, cost: Cost) -> int:
    """Return the size of a checkpoint inside a task, without optimiser state and without frozen copies."""
    copies = method.teacher_parameters + sum(method.task_memory().copies.values())
    return cost.bytes + next(method.parameters()).element_size() * (cost.task_parameters - copies)


def count_cost(method: Countable, trainable: int, growth: str) -> Cost:
    """Count parameters and bytes.

    Args:
        method: the method whose parameters, teachers and extra tensors are counted.
        trainable: the number of parameters that train.
        growth: what a task adds, as a text for people.
    """
    weights = list(method.parameters())
    extra, teachers = list(method.extra_tensors().values()), method.teacher_parameters
    tensors, memory = (*weights, *extra), method.task_memory()
    return Cost(
        trainable_parameters=trainable,
        stored_parameters=teachers + sum(t.numel() for t in tensors),
        active_parameters=sum(p.numel() for p in weights),
        bytes=weights[0].element_size() * teachers + sum(t.numel() * t.element_size() for t in tensors),
        buffer_samples=0 if method.buffer is None else len(method.buffer),
        extra_per_image=extra_cost(method.backbone.clip),
        growth_per_task=growth,
        task_parameters=memory.size,
        held_during_task=str(memory),
    )
