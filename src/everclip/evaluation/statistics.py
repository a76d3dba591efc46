"""Confidence intervals, which decide whether a difference is resolved.

Wilson's interval for one proportion, a seeded paired bootstrap over images for the difference of two models on the
same items, and a t interval over seeds. Values are fractions unless the caller passes others. A result depends on
the items and the seed only, not on the order of the items or the block size.

Wilson's interval and the bootstrap are our own code. Tests check that they equal scipy's up to rounding. But scipy's
Wilson interval runs an exact test each time, and scipy's bootstrap can neither resample images with all their items
nor draw the counts of distinct values.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 1 << 20  # resampled items held at once; 8 MiB per float64 array


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval, `low <= high`, in the unit of the values."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of `a - b` over paired items with its bootstrap interval.

    `resolved` is true if the interval excludes 0 and enough images differ between `a` and `b` for a unanimous sign
    test to reject at the same level. With only a few differing images, a percentile bootstrap is far too confident.
    """

    mean: float
    low: float
    high: float
    resolved: bool


@dataclass(frozen=True, slots=True)
class Flips:
    """The answers that an update breaks or repairs, as fractions of all items (Yan et al., arXiv 2011.09161).

    Attributes:
        negative: NFR, `P(old right and new wrong)`.
        positive: PFR, `P(old wrong and new right)`; the change of accuracy is `positive - negative`.
        relative_negative: `NFR / ( acc_old (1 - acc_new) )`, 1 for independent errors; `None` if that is 0.
    """

    negative: float
    positive: float
    relative_negative: float | None


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over seeds, unbiased standard deviation, and t interval of the mean; all but the mean need two seeds."""

    mean: float
    standard_deviation: float | None
    low: float | None
    high: float | None


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion (Wilson 1927): inside [0, 1], also at 0 or `n` successes.

    `( p + z^2/2n +- z sqrt( p(1-p)/n + z^2/4n^2 ) ) / ( 1 + z^2/n )` with `p = successes / n`.

    Raises:
        ValueError: if `n < 1`, `successes` is outside `0..n`, or `confidence` is outside (0, 1).
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} are no proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Without or with only successes, one end is exact; rounding would leave 1e-17.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + half) / scale)
    return Interval(low, high)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    seed: int,
    draws: int = 10_000,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> Difference:
    """Return the percentile bootstrap of `mean(a - b)` of two models on the same items (Efron and Tibshirani 1993).

    Args:
        a: `(N,)` outcomes of one model per item, such as hit or miss.
        b: `(N,)` outcomes of the other model on the same items, in the same order.
        seed: seed of the Philox generator.
        draws: number of resamples.
        confidence: level of the interval.
        groups: `(N,)` image id of each item, if several queries share an image. Images are then resampled with all
            their items, because queries of one image are not independent.

    Raises:
        ValueError: if lengths differ, there are no items, a value is not finite, `draws < 1`, or `confidence` is
            outside (0, 1).
    """
    first, second = _vector(a, "a"), _vector(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} items, b has {len(second)}: they are not paired")
    difference = first - second
    cells, counts = _cells(difference, groups)
    # Of a - b and b - a, the draws always come from the same one. So swapping a and b only changes the sign.
    negated, times = _cells(0.0 - difference, groups)
    keys = (negated.tolist(), times.tolist()), (cells.tolist(), counts.tolist())
    swapped = keys[0] > keys[1]
    drawn = (
        _resampled_means(negated, times, seed, draws)
        if swapped
        else _resampled_means(cells, counts, seed, draws)
    )
    interval = _percentile(drawn, confidence)
    if swapped:
        interval = Interval(0.0 - interval.high, 0.0 - interval.low)
    elif keys[0] == keys[1]:  # symmetric around 0, so the interval is symmetric, too
        half = (interval.high - interval.low) / 2
        interval = Interval(0.0 - half, half)
    differing = int(counts[cells[:, 0] != 0].sum())
    decidable = 2.0 ** (1 - differing) <= 1 - confidence
    excludes_zero = interval.low > 0 or interval.high < 0
    return Difference(float(difference.mean()), interval.low, interval.high, excludes_zero and decidable)


def bootstrap_mean(
    values: ArrayLike,
    seed: int,
    draws: int = 10_000,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> Interval:
    """Return the percentile bootstrap interval of a mean that is not a proportion, such as average precision.

    Args:
        values: `(N,)` one value per item.
        seed: seed of the Philox generator.
        draws: number of resamples.
        confidence: level of the interval.
        groups: `(N,)` image id of each item; images are resampled, as in `paired_bootstrap`.

    Raises:
        ValueError: if there are no items, a value is not finite, `draws < 1`, or `confidence` is outside (0, 1).
    """
    cells, counts = _cells(_vector(values, "values"), groups)
    return _percentile(_resampled_means(cells, counts, seed, draws), confidence)


def seed_spread(values: ArrayLike, confidence: float = 0.95) -> Spread:
    """Return mean and spread over seeds or task orders, with Student's t interval `mean +- t_{n-1} sd / sqrt(n)`.

    Raises:
        ValueError: if there are no values, a value is not finite, or `confidence` is outside (0, 1).
    """
    _check_confidence(confidence)
    items = _vector(values, "values")
    mean = float(items.mean())
    if len(items) == 1:
        return Spread(mean, None, None, None)
    deviation = float(items.std(ddof=1))
    half = _t_quantile(confidence, len(items) - 1) * deviation / math.sqrt(len(items))
    return Spread(mean, deviation, mean - half, mean + half)


def flips(old: ArrayLike, new: ArrayLike) -> Flips:
    """Return the negative and positive flip rates of two models on the same items.

    Args:
        old: `(N,)` hits (1) and misses (0) of the old model; in retrieval, a hit is a positive among the top k.
        new: `(N,)` hits and misses of the new model.

    Raises:
        ValueError: if lengths differ, there are no items, or an outcome is neither 0 nor 1.
    """
    was, now = _vector(old, "old"), _vector(new, "new")
    if len(was) != len(now):
        raise ValueError(f"old has {len(was)} items, new has {len(now)}: they are not paired")
    if not np.isin(np.concatenate([was, now]), (0, 1)).all():
        raise ValueError("flips needs outcomes 0 and 1")
    negative = float((was * (1 - now)).mean())
    chance = float(was.mean() * (1 - now.mean()))
    return Flips(negative, float(((1 - was) * now).mean()), negative / chance if chance else None)


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1 or not len(items):
        raise ValueError(f"{name} must be one-dimensional and not empty, its shape is {items.shape}")
    if not np.isfinite(items).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(items)))}] is not finite")
    return items


def _cells(
    values: NDArray[np.float64], groups: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the distinct (sum, size) pairs of the images `(U, 2)`, sorted, and their counts `(U,)`."""
    if groups is None:
        distinct, counts = np.unique(values, return_counts=True)
        return np.stack([distinct, np.ones_like(distinct)], axis=1), counts.astype(np.int64)
    ids = np.asarray(groups)
    if ids.shape != values.shape:
        raise ValueError(f"groups has shape {ids.shape}, the items have {values.shape}")
    _, member = np.unique(ids, return_inverse=True)
    sizes = np.bincount(member).astype(np.float64)
    images = np.stack([np.bincount(member, weights=values), sizes], axis=1)
    cells, times = np.unique(images, axis=0, return_counts=True)
    return cells, times.astype(np.int64)


def _resampled_means(
    cells: NDArray[np.float64], counts: NDArray[np.int64], seed: int, draws: int
) -> NDArray[np.float64]:
    """Return `(draws,)` means of samples of images drawn with replacement."""
    if draws < 1:
        raise ValueError(f"draws must be positive, it is {draws}")
    images = int(counts.sum())
    generator = np.random.Generator(np.random.Philox(seed))
    # Hits and misses have few distinct values. Their counts in a resample are multinomial, so drawing the counts is
    # the same bootstrap at a cost that does not grow with the number of images.
    few = 16 * len(cells) <= images
    flat = cells if few else np.repeat(cells, counts, axis=0)
    means = np.empty(draws)
    step = max(1, _BLOCK // len(flat))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        if few:
            totals = generator.multinomial(images, counts / images, size=size) @ cells
            means[start : start + size] = totals[:, 0] / totals[:, 1]
        else:
            drawn = generator.integers(images, size=(size, images))
            means[start : start + size] = flat[:, 0][drawn].sum(axis=1) / flat[:, 1][drawn].sum(axis=1)
    return means


def _percentile(means: NDArray[np.float64], confidence: float) -> Interval:
    _check_confidence(confidence)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), it is {confidence}")


def _t_quantile(confidence: float, freedom: int) -> float:
    """Return `t` with `P(|T| < t) = confidence`."""
    from scipy.special import stdtrit  # imported here: the import takes longer than most comparisons

    return float(stdtrit(freedom, 0.5 + confidence / 2))
