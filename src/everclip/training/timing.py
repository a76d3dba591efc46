"""How long something takes for a whole batch, measured on small ones first so that measuring stays short."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST, GROWTH = 2, 4
"""Samples of the first try, and how many times more each further one has."""


def extrapolated(
    seconds_of: Callable[[int], float], full: int, limit: float, now: Callable[[], float] = time.monotonic
) -> float:
    """Return the seconds that `full` samples take, measured if that is quick, else extended from two smaller tries.

    What does not depend on the number of samples (names of classes that are encoded at each step) is in every try, so
    the line through the last two counts it once.

    Args:
        seconds_of: runs so many samples once and returns the seconds.
        full: samples of a whole batch.
        limit: no larger try begins where it would end later than so many seconds after the first.
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
