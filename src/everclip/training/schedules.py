"""Learning rates as pure functions of the step (open_clip's formulas), so that a resume needs no stored state."""

from __future__ import annotations

import math


def resolve(amount: int | float, steps: int) -> int:
    """Return a number of steps; an `amount` below 1 is a share of all steps."""
    return round(amount * steps) if 0 < amount < 1 else int(amount)


def learning_rate(
    step: int, steps: int, base: float, schedule: str, warmup: int | float = 0, cooldown: int | float = 0
) -> float:
    """Return the learning rate of a step.

    With w warm-up steps, S steps in all and c cool-down steps: `base * (step + 1) / w` while step < w; then
    `cosine`: `base * (1 + cos(pi * (step - w) / (S - w))) / 2`; `constant`: base; `constant-cooldown`: base until
    S - c, then `base * (1 - (step - (S - c)) / c)`.

    Args:
        step: 0-based.
        steps: S.
        base: highest rate.
        schedule: `cosine`, `constant` or `constant-cooldown`.
        warmup, cooldown: steps; below 1 a share of S.

    Raises:
        ValueError: for an unknown schedule.
    """
    warm = resolve(warmup, steps)
    if step < warm:
        return base * (step + 1) / warm
    if schedule == "constant":
        return base
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) * base
    if schedule == "constant-cooldown":
        cool = resolve(cooldown, steps)
        start = steps - cool
        return base if step < start else base * (1 - (step - start) / max(1, cool))
    raise ValueError(f"unknown schedule {schedule!r}")


def stepped(step: int, base: float, every: int, factor: float) -> float:
    """Return `base * factor^(step // every)`, for 0-based steps."""
    return base * factor ** (step // every)
