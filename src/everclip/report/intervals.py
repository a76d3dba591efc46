"""Intervals of metrics over several evaluation sets, with and without outcomes per item.

`everclip.evaluation.statistics` treats one set of items. Here a mean over sets weighs every set equally, so items are
resampled inside their set (a stratified bootstrap). If only intervals are known, the interval of a difference is
Newcombe's (1998); `everclip.report.sensitivity` combines the intervals of a metric's cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from everclip.evaluation.statistics import Interval

Array = NDArray[np.float64]
Statistic = Callable[[Sequence[Array]], Array]
"""From the means of each set `(..., R)` to the statistic `(...)`."""

DRAWS = 10_000
_BLOCK = 1 << 20


def stratified_bootstrap(
    blocks: Sequence[Array], statistic: Statistic, seed: int, draws: int = DRAWS, confidence: float = 0.95
) -> Interval:
    """Return the percentile interval of a statistic of column means. Items are resampled within each set.

    Args:
        blocks: per set `(N_k, R)`: one row per item, one column per model or evaluation row. A resample takes whole
            rows, so columns stay paired.
        statistic: computes one number from the means of each set.
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
    """Return `(draws, R)` means. Drawing the count of each distinct row is the same bootstrap, and much cheaper."""
    # Columns are sorted by content before rows are drawn, so that a - b and b - a use the same draws.
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
    """Return the interval of `a - b` from the intervals of `a` and `b` (Newcombe 1998, method 10).

    The two are treated as independent. For two models on the same items, it is wider than the paired interval.
    """
    below = math.hypot(a - of_a.low, of_b.high - b)
    above = math.hypot(of_a.high - a, b - of_b.low)
    return Interval(a - b - below, a - b + above)


def enough_differ(first: Sequence[Array], second: Sequence[Array], confidence: float) -> bool:
    """Whether enough items differ for a unanimous sign test to reject at this level.

    With only a few differing items, a percentile bootstrap is far too confident.
    """
    differing = sum(int((a != b).any(axis=1).sum()) for a, b in zip(first, second, strict=True))
    return differing >= least_differing(confidence)


def least_differing(confidence: float) -> int:
    """Return the least number of differing items for which a unanimous sign test rejects at this level."""
    return math.ceil(1 - math.log2(1 - confidence))
