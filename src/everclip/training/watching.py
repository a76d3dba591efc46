"""The position inside a task's training, and the interface that follows training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

OptimiserState = Callable[[], dict[str, torch.Tensor]]
"""A function that returns the optimiser's state as named tensors."""


@dataclass
class StepLog:
    """The report of one step: losses, learning rate, norm of the gradient; `losses` may still be on the device.

    `moved` is set in the first steps of a phase: whether any gradient was not 0.
    """

    step: int
    losses: dict[str, torch.Tensor]
    lr: float
    grad_norm: torch.Tensor | None
    samples: int
    moved: torch.Tensor | None = None

    def values(self) -> dict[str, float]:
        """Return losses, learning rate (`lr`) and norm of the gradient (`grad_norm`, if known); reads tensors."""
        norm = {} if self.grad_norm is None else {"grad_norm": float(self.grad_norm)}
        return {name: float(value) for name, value in self.losses.items()} | {"lr": self.lr} | norm


@dataclass
class Cursor:
    """The position inside a task; stored in checkpoints.

    `paused`: training stopped here to go on later. `macs`: name of a phase -> multiply-accumulates of one of its steps,
    counted when the task began.
    """

    phase: int = 0
    repeat: int = 0
    step: int = 0
    begun: bool = False
    optimiser: dict[str, torch.Tensor] = field(default_factory=dict)
    paused: bool = False
    macs: dict[str, float] = field(default_factory=dict)


class Watcher:
    """Follow training without synchronising with the device; this base class does nothing.

    A run, a progress line and a range test are watchers.
    """

    def after_step(self, log: StepLog) -> bool:
        """Count a step and return whether a checkpoint is due. Must not read tensors."""
        return False

    def pauses(self, step: int) -> bool:
        """Return whether training pauses after `step` steps of the current phase, to go on later."""
        return False

    def report(self, logs: Sequence[StepLog]) -> None:
        """Receive the next logs, after their losses were checked. May read tensors."""

    def save(self, cursor: Cursor, optimiser: OptimiserState) -> None:
        """Write a checkpoint at the position of the cursor."""
