"""Convert a budget in steps, epochs, samples or multiply-accumulates into optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from everclip.config import TrainingConfig
from everclip.contracts import Phase
from everclip.data.sampling.batches import stream_size
from everclip.errors import ConfigError


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


def takes_budget(phase: Phase) -> bool:
    """Return whether the run's budget decides the steps of a phase, rather than the phase or its stream."""
    main = phase.streams.get("main")
    once = main is not None and main.order == "once"
    return phase.optimiser is not None and not once and phase.steps is None and phase.epochs is None


def within_macs(
    phases: Sequence[Phase], config: TrainingConfig, per_step: Mapping[str, float]
) -> list[Phase]:
    """Return the phases of a task with as many steps as a budget in multiply-accumulates allows.

    Phases with steps of their own come first; what is left is shared equally among the others and their repeats. So a
    method whose step costs more takes fewer steps. Without such a budget, the phases stay as they are.

    Args:
        phases: all phases of the task.
        config: holds the budget.
        per_step: name of a phase -> multiply-accumulates of one of its steps.

    Raises:
        ConfigError: if the budget does not allow one step.
    """
    free = [phase for phase in phases if takes_budget(phase)]
    if config.macs is None or not free:
        return list(phases)
    fixed = macs_of([p for p in phases if not takes_budget(p)], config, per_step)
    budget = config.macs * max(phase.budgets for phase in free)
    each = (budget - fixed) / sum(phase.repeats for phase in free)
    steps = {phase.name: int(each / per_step[phase.name]) for phase in free}
    small = next((name for name, count in steps.items() if count < 1), None)
    if small is not None:
        needed = fixed + sum(per_step[phase.name] * phase.repeats for phase in free)
        raise ConfigError(
            f"training.macs: {budget:.3g} multiply-accumulates do not allow one step of phase {small!r} "
            f"({_rounded_up(per_step[small])} each); this task needs at least {_rounded_up(needed)}."
        )
    return [replace(p, steps=steps[p.name]) if takes_budget(p) else p for p in phases]


def _rounded_up(count: float) -> str:
    """Return a count with three digits, never less than it is: a user sets what a message names."""
    unit = 10.0 ** (math.floor(math.log10(count)) - 2)
    return f"{math.ceil(count / unit) * unit:.3g}"


def macs_of(phases: Sequence[Phase], config: TrainingConfig, per_step: Mapping[str, float]) -> float:
    """Return the multiply-accumulates of phases whose steps are decided; phases in closed form are not counted."""
    counted = [phase for phase in phases if phase.name in per_step]
    return sum(phase_steps(p, config) * p.repeats * per_step[p.name] for p in counted)


def scheduled_steps(phase: Phase, config: TrainingConfig, steps: int) -> int:
    """Return the number of steps that the schedule spans, of all `steps` of a phase; later steps keep its last rate."""
    return steps if phase.steps is not None else max(0, steps - config.extra_steps)


def _budget(phase: Phase, config: TrainingConfig) -> int:
    stream = phase.streams["main"]
    epochs = phase.epochs
    if epochs is None:
        if config.steps is not None:
            return math.ceil(phase.budgets * config.steps)
        if config.samples is not None:
            return math.ceil(phase.budgets * phase.stretch * config.samples / stream.batch_size)
        if config.macs is not None:
            raise ConfigError(
                f"training.macs: the steps of phase {phase.name!r} are not known before a step has been counted; set "
                "steps, epochs or samples here."
            )
        epochs = config.epochs
        assert epochs is not None  # TrainingConfig requires one of the four
    return math.ceil(
        phase.budgets * phase.stretch * epochs * len(stream.sources[0].table) / stream.batch_size
    )
