"""The pass over a task after its training that measures gradients for penalties (online EWC)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from everclip.contracts import ParamGroup, Phase, Progress
from everclip.methods.penalties.base import Penalty

MEASURE = "measure"
"""The name of its phase; penalties have no loss in it."""


def measuring_phases(
    penalties: Sequence[Penalty[Any]],
    phases: Sequence[Phase],
    trainable: Sequence[str],
) -> list[Phase]:
    """Return the phase that measures gradients; none if no penalty needs it, or nothing trains the model.

    It is one pass over the task's own samples, without replayed ones, in batches of the same size. Each batch is full.

    Args:
        penalties: of the method.
        phases: of the task.
        trainable: the parameters of the model that train.
    """
    trained = [phase for phase in phases if phase.optimiser is not None and phase.guarded]
    if not trained or not any(penalty.reads_gradients for penalty in penalties):
        return []
    last = trained[-1]
    held = {name for group in last.param_groups for name in group.names}
    names = tuple(name for name in trainable if name in held)
    main = last.streams["main"]
    size = len(main.sources[0].table)
    own = replace(main, sources=main.sources[:1])
    return [
        replace(
            last,
            name=MEASURE,
            streams={**last.streams, "main": own},
            param_groups=(ParamGroup(names),),
            optimiser=None,
            gradients=True,
            steps=max(1, math.ceil(size / main.batch_size)),
            repeats=1,
            notes=(),
        )
    ]


def measure(penalties: Sequence[Penalty[Any]], method: nn.Module, progress: Progress) -> None:
    """Give the gradients of a batch to the penalties that need them."""
    gradients = {n: p.grad for n, p in method.named_parameters() if p.requires_grad and p.grad is not None}
    for penalty in penalties:
        if penalty.reads_gradients:
            penalty.measure(gradients, progress)
