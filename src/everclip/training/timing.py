"""Measure the time for a whole batch, starting with small ones so that the measurement stays short."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST, GROWTH = 2, 4
"""Samples of the first measurement, and the factor from each measurement to the next."""


def extrapolated(
    seconds_of: Callable[[int], float], full: int, limit: float, now: Callable[[], float] = time.monotonic
) -> float:
    """Return the seconds for `full` samples, measured if that is quick, else extrapolated from two smaller numbers.

    Work that does not depend on the number of samples (class names that are encoded at each step) is part of every
    measurement, so the line through the last two counts it once.

    Args:
        seconds_of: runs a number of samples once and returns the seconds.
        full: samples of a whole batch.
        limit: seconds after the start at which a larger measurement must be expected to end.
        now: the clock.
    """
    started = now()
    size = min(FIRST, full)
    seconds_of(size)  # warms up
    points = [(size, seconds_of(size))]
    while size < full:
        size, taken = min(full, GROWTH * size), points[-1][1]
        late = now() - started + taken * size / points[-1][0] > limit
        if late and len(points) > 1:
            break
        points.append((size, seconds_of(size)))
    last, seconds = points[-1]
    if last == full:
        return seconds
    before, less = points[-2]
    slope = max(0.0, seconds - less) / (last - before)
    return seconds + slope * (full - last)
