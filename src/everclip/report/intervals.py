"""Intervals of numbers that several evaluation sets make up together, with and without per-item outcomes.

Complements `everclip.evaluation.statistics`, which treats one set of items: here a mean over sets weighs every
set alike, so items are resampled inside their set (a stratified bootstrap). Where only intervals are known, that of a
difference of two is Newcombe's (1998); see `everclip.report.sensitivity` for those of a metric's cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from everclip.evaluation.statistics import Interval

Array = NDArray[np.float64]
Statistic = Callable[[Sequence[Array]], Array]
"""Means per set, each `(..., R)`, to the statistic `(...)`."""

DRAWS = 10_000
_BLOCK = 1 << 20


def stratified_bootstrap(
    blocks: Sequence[Array], statistic: Statistic, seed: int, draws: int = DRAWS, confidence: float = 0.95
) -> Interval:
    """Percentile interval of a statistic of column means, items resampled within each set.

    Args:
        blocks: per set `(N_k, R)`: one row per item, one column per model or moment; a resample takes whole
            rows, so that what stands side by side stays paired.
        statistic: from the means of each set to one number.
        seed: of the Philox generator.
        draws: number of resamples.
        confidence: level of the interval.

    Raises:
        ValueError: no blocks, or an empty one.
    """
    if not blocks or any(block.ndim != 2 or not len(block) for block in blocks):
        raise ValueError("a bootstrap needs blocks of shape (N, R) with N >= 1")
    generator = np.random.Generator(np.random.Philox(seed))
    values = statistic([_resampled(block, generator, draws) for block in blocks])
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _resampled(block: Array, generator: np.random.Generator, draws: int) -> Array:
    """`(draws, R)` means. Drawing how often each distinct row occurs is the same bootstrap, and much cheaper."""
    # Rows are drawn in the order of their values: columns in an order of their own, so that a - b and b - a draw alike.
    order = sorted(range(block.shape[1]), key=lambda column: block[:, column].tobytes())
    cells, counts = np.unique(block[:, order], axis=0, return_counts=True)
    cells = cells[:, np.argsort(order)]
    n = int(counts.sum())
    means = np.empty((draws, block.shape[1]))
    step = max(1, _BLOCK // len(cells))
    for start in range(0, draws, step):
        times = generator.multinomial(n, counts / n, size=min(step, draws - start))
        means[start : start + step] = times @ cells / n
    return means


def difference_interval(a: float, of_a: Interval, b: float, of_b: Interval) -> Interval:
    """Interval of `a - b` from the interval of each (Newcombe 1998, method 10).

    Treats the two as independent, so for two models on the same items it is wider than the paired interval.
    """
    below = math.hypot(a - of_a.low, of_b.high - b)
    above = math.hypot(of_a.high - a, b - of_b.low)
    return Interval(a - b - below, a - b + above)


def enough_differ(first: Sequence[Array], second: Sequence[Array], confidence: float) -> bool:
    """Whether so many items differ that a unanimous sign test could reject at this level.

    A percentile bootstrap over a handful of differing items is otherwise far too sure of itself.
    """
    differing = sum(int((a != b).any(axis=1).sum()) for a, b in zip(first, second, strict=True))
    return 2.0 ** (1 - differing) <= 1 - confidence
