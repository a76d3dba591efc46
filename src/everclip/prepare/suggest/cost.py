"""Limits the cost of a range test: fewer steps first, then smaller batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LEAST_STEPS, LEAST_BATCH = 24, 8
"""With less than these, a sweep shows nothing."""

TOO_MUCH = 1.25
"""A sweep that takes more than this multiple of its budget is not started."""


@dataclass(frozen=True)
class Sweeps:
    """The size of the two sweeps of a range test.

    Attributes:
        steps: steps of each sweep.
        batch: samples of a step.
        seconds: estimated time of both.
        full_step: seconds of a step with a full batch.
        note: what was reduced to fit the budget, in words; empty if nothing was.
    """

    steps: int
    batch: int
    seconds: float
    full_step: float
    note: str = ""


def fit_sweeps(seconds_of: Callable[[int], float], steps: int, batch: int, budget: float) -> Sweeps:
    """Return sweeps that take at most about `budget` seconds, or the shortest useful ones.

    Args:
        seconds_of: number of samples -> measured seconds of a step.
        steps: preferred steps of each sweep.
        batch: preferred samples of a step.
        budget: seconds.
    """
    full = seconds_of(batch)
    least = min(steps, LEAST_STEPS)
    if 2 * least * full <= budget:
        fitting_steps = min(steps, int(budget / (2 * full))) if full > 0 else steps
        note = f"{fitting_steps} steps in place of {steps}" if fitting_steps < steps else ""
        return Sweeps(fitting_steps, batch, 2 * fitting_steps * full, full, note)
    smaller = batch
    while smaller > LEAST_BATCH and 2 * least * full * smaller / batch > budget:
        smaller = max(LEAST_BATCH, smaller // 2)
    step = seconds_of(smaller) if smaller < batch else full
    note = f"{least} steps of {smaller} samples in place of {steps} of {batch}"
    return Sweeps(least, smaller, 2 * least * step, full, note)
