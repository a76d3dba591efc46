"""Where the training of a task stands, and who follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

OptimiserState = Callable[[], dict[str, torch.Tensor]]
"""Returns the optimiser's state as named tensors."""


@dataclass
class StepLog:
    """What one step reports: losses, rate, norm of the gradient; `losses` may still live on the device.

    `moved` says of the first steps of a phase whether any gradient was other than 0.
    """

    step: int
    losses: dict[str, torch.Tensor]
    lr: float
    grad_norm: torch.Tensor | None
    samples: int
    moved: torch.Tensor | None = None


@dataclass
class Cursor:
    """Where learning stands inside a task; all of it goes into a checkpoint."""

    phase: int = 0
    repeat: int = 0
    step: int = 0
    begun: bool = False
    optimiser: dict[str, torch.Tensor] = field(default_factory=dict)


class Watcher:
    """Follows training without making it wait for the device; this one does nothing.

    A run, a progress line and a range test are watchers.
    """

    def after_step(self, log: StepLog) -> bool:
        """Count a step; return whether a checkpoint is due. Must not read tensors."""
        return False

    def report(self, logs: Sequence[StepLog]) -> None:
        """Take logs whose losses were found good, some at a time; may read tensors."""

    def save(self, cursor: Cursor, optimiser: OptimiserState) -> None:
        """Write a checkpoint of the place at which the cursor stands."""
