"""Convert a budget in steps, epochs or samples into optimiser steps."""

from __future__ import annotations

import math

from everclip.config import TrainingConfig
from everclip.contracts import Phase
from everclip.data.sampling.batches import stream_size


def phase_steps(phase: Phase, config: TrainingConfig) -> int:
    """Return the number of optimiser steps of a phase.

    An epoch is one pass over the first source of the stream `main`: replayed samples cost no extra steps, unless the
    phase has a `stretch`. `training.extra_steps` are added, except to `phase.steps`. A stream that is seen once has
    `times` steps per batch, whatever the budget.
    """
    if phase.optimiser is None and not phase.gradients:
        return max(math.ceil(stream_size(s) / s.batch_size) for s in phase.streams.values())
    main = phase.streams.get("main")
    if main is not None and main.order == "once":
        return (main.first + math.ceil(stream_size(main) / main.batch_size)) * main.times
    if phase.steps is not None:
        return phase.steps
    return _budget(phase, config) + config.extra_steps


def scheduled_steps(phase: Phase, config: TrainingConfig, steps: int) -> int:
    """Return the number of steps that the schedule spans, of all `steps` of a phase; later steps keep its last rate."""
    return steps if phase.steps is not None else max(0, steps - config.extra_steps)


def _budget(phase: Phase, config: TrainingConfig) -> int:
    stream = phase.streams["main"]
    epochs = phase.epochs
    if epochs is None:
        if config.steps is not None:
            return config.steps
        if config.samples is not None:
            return math.ceil(phase.stretch * config.samples / stream.batch_size)
        epochs = config.epochs
        assert epochs is not None  # TrainingConfig requires one of the three
    return math.ceil(phase.stretch * epochs * len(stream.sources[0].table) / stream.batch_size)
