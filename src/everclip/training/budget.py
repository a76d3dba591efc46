"""From a budget in steps, epochs or samples to optimiser steps."""

from __future__ import annotations

import math

from everclip.config import TrainingConfig
from everclip.contracts import Phase
from everclip.data.sampling.batches import stream_size


def phase_steps(phase: Phase, config: TrainingConfig) -> int:
    """Return how many optimiser steps a phase takes.

    An epoch is one pass over the first source of the stream `main`: mixing replay in costs no extra steps, unless the
    phase says so (`stretch`). `training.extra_steps` come on top, but not of steps that a phase or task names itself.
    """
    if phase.optimiser is None:
        return max(math.ceil(stream_size(s) / s.batch_size) for s in phase.streams.values())
    if phase.steps is not None:
        return phase.steps
    return _budget(phase, config) + config.extra_steps


def scheduled_steps(phase: Phase, config: TrainingConfig, steps: int) -> int:
    """Return the steps that the schedule spans, of all `steps` of a phase; those behind it stay at its end."""
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
