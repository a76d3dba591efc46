"""Following a learner through a task: where it stands, and what a loop over it wants to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from everclip.training.engine import StepLog

Optimiser = Callable[[], dict[str, torch.Tensor]]
"""Returns the optimiser's state as named tensors."""


@dataclass
class Cursor:
    """Where learning stands inside a task; all of it goes into a checkpoint."""

    phase: int = 0
    repeat: int = 0
    step: int = 0
    begun: bool = False
    optimiser: dict[str, torch.Tensor] = field(default_factory=dict)


class Watcher(Protocol):
    """What a loop over a learner wants to know; see `everclip.training.engine.Hooks`."""

    def after_step(self, log: StepLog) -> bool:
        """Count a step; return whether a checkpoint is due."""

    def report(self, logs: Sequence[StepLog]) -> None:
        """Show and record steps."""

    def save(self, cursor: Cursor, optimiser: Optimiser) -> None:
        """Write a checkpoint."""
