"""What a range test may cost: fewer steps first, then smaller batches, and none at all where that is not enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LEAST_STEPS, LEAST_BATCH = 24, 8
"""Below these a sweep says nothing."""

TOO_MUCH = 1.25
"""A sweep that takes more than so many times what is allowed is not begun."""


@dataclass(frozen=True)
class Sweeps:
    """Two sweeps that fit the time.

    Attributes:
        steps: of each.
        batch: samples of a step.
        seconds: what both take together, about.
        full_step: seconds of a step of a whole batch.
        note: what is less than was asked for, for people; empty if nothing.
    """

    steps: int
    batch: int
    seconds: float
    full_step: float
    note: str = ""


def fitting(seconds_of: Callable[[int], float], steps: int, batch: int, budget: float) -> Sweeps:
    """Return sweeps that take at most about `budget` seconds, or the shortest that say something.

    Args:
        seconds_of: measures a step of so many samples.
        steps: wanted of each sweep.
        batch: wanted samples of a step.
        budget: seconds.
    """
    full = seconds_of(batch)
    least = min(steps, LEAST_STEPS)
    if 2 * least * full <= budget:
        taken = min(steps, int(budget / (2 * full))) if full > 0 else steps
        note = f"{taken} steps in place of {steps}" if taken < steps else ""
        return Sweeps(taken, batch, 2 * taken * full, full, note)
    smaller = batch
    while smaller > LEAST_BATCH and 2 * least * full * smaller / batch > budget:
        smaller = max(LEAST_BATCH, smaller // 2)
    step = seconds_of(smaller) if smaller < batch else full
    note = f"{least} steps of {smaller} samples in place of {steps} of {batch}"
    return Sweeps(least, smaller, 2 * least * step, full, note)
