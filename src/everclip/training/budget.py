"""From a budget in steps, epochs or samples to optimiser steps."""

from __future__ import annotations

import math

from everclip.config import TrainingConfig
from everclip.contracts import Phase
from everclip.data.batches import stream_size


def phase_steps(phase: Phase, config: TrainingConfig) -> int:
    """Return how many optimiser steps a phase takes.

    An epoch is one pass over the first source of the stream `main`: mixing replay in costs no extra steps, unless the
    phase says so (`stretch`).
    """
    if phase.optimiser is None:
        return max(math.ceil(stream_size(s) / s.batch_size) for s in phase.streams.values())
    if phase.steps is not None:
        return phase.steps
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
