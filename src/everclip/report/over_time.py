"""Two models against each other on a static suite and on dated test sets: what does a static test hide?

After the first figure of TiC-CLIP (Garg et al., ICLR 2024, arXiv 2310.16226): models that a static suite does not tell
apart may differ on data of later years. All intervals are bootstraps over items; differences are paired, since both
models answer the same items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict

from everclip.evaluation.statistics import wilson
from everclip.report.estimates import PAIRED, SEED, Change, Estimate
from everclip.report.intervals import DRAWS, Array, Statistic, enough_differ, stratified_bootstrap


@dataclass(frozen=True, eq=False)
class Answered:
    """One evaluation set, answered by both models.

    Attributes:
        name: of the set.
        metric: what the outcomes are.
        dated: whether it is one of the dated sets; else it belongs to the static suite.
        first, second: `(N,)` outcomes per item, in [0, 1], of each model.
    """

    name: str
    metric: str
    dated: bool
    first: Array
    second: Array

    @property
    def block(self) -> Array:
        """`(N, 2)`: the outcomes of both models."""
        return np.stack([self.first, self.second], axis=1)


class Pair(BaseModel):
    """A number of each model with its interval, and the second minus the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: Estimate
    second: Estimate
    change: Change


class SetPair(Pair):
    """The scores of one set."""

    name: str
    metric: str
    items: int


class OverTime(BaseModel):
    """The comparison of two models.

    Attributes:
        models: their names.
        benchmark: where the sets come from.
        protocol: which answers they choose from.
        static: the mean over the static suite, every set with equal weight; `None` without a suite.
        static_sets: the sets of the suite.
        dated: the dated sets, oldest first.
        trend: newest minus oldest set of each model, and the difference of the two.
        beyond_static: the models' difference on the newest set minus that on the static suite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, str]
    benchmark: str
    protocol: str
    confidence: float
    static: Pair | None
    static_sets: list[SetPair]
    dated: list[SetPair]
    trend: Pair | None
    beyond_static: Change | None
    notes: list[str] = []


def over_time(
    models: tuple[str, str],
    sets: Sequence[Answered],
    benchmark: str,
    protocol: str,
    confidence: float = 0.95,
    notes: Sequence[str] = (),
    draws: int = DRAWS,
) -> OverTime:
    """Compare two models.

    Args:
        models: their names.
        sets: what they answered; dated sets in order of time.
        benchmark, protocol: for people.
        confidence: level of the intervals.
        notes: for people.
        draws: number of resamples.

    Raises:
        ValueError: without a dated set.
    """
    static, dated = [s for s in sets if not s.dated], [s for s in sets if s.dated]
    if not dated:
        raise ValueError("there is no dated set")
    measure = _Measure(confidence, draws)
    ends = [dated[0], dated[-1]]
    return OverTime(
        models=models,
        benchmark=benchmark,
        protocol=protocol,
        confidence=confidence,
        static=measure.pair(static, _mean) if static else None,
        static_sets=[measure.of_set(s) for s in static],
        dated=[measure.of_set(s) for s in dated],
        trend=measure.pair(ends, _rise) if len(dated) > 1 else None,
        beyond_static=measure.change([*static, dated[-1]], _last_minus_others) if static else None,
        notes=list(notes),
    )


def _of_model(value: Statistic, model: int, means: Sequence[Array]) -> Array:
    """Return a value of one model from the means of both, `(..., 2)` per set."""
    return value([both[..., model] for both in means])


def _mean(means: Sequence[Array]) -> Array:
    """Return the mean over sets."""
    return np.asarray(np.mean(means, axis=0))


def _rise(means: Sequence[Array]) -> Array:
    """Return the last set minus the first."""
    return np.asarray(means[-1] - means[0])


def _last_minus_others(means: Sequence[Array]) -> Array:
    """Return the last set minus the mean of the others."""
    return np.asarray(means[-1] - _mean(means[:-1]))


@dataclass(frozen=True)
class _Measure:
    confidence: float
    draws: int

    def of_set(self, s: Answered) -> SetPair:
        """Return the scores of one set."""
        both = self.pair([s], _mean)
        return SetPair(
            name=s.name,
            metric=s.metric,
            items=len(s.first),
            first=both.first,
            second=both.second,
            change=both.change,
        )

    def pair(self, sets: Sequence[Answered], value: Statistic) -> Pair:
        """Return a value of both models.

        Args:
            sets: what it is computed from.
            value: from the means of each set `(..., )` to the value.
        """
        first, second = (self._of_model(sets, value, model) for model in (0, 1))
        return Pair(first=first, second=second, change=self.change(sets, value))

    def _of_model(self, sets: Sequence[Answered], value: Statistic, model: int) -> Estimate:
        """Return the value of one model. Items that are all right or all wrong would give an interval of width 0."""
        outcomes = sets[0].block[:, model]
        if len(sets) == 1 and (bool((outcomes == 0).all()) or bool((outcomes == 1).all())):
            found = wilson(int(outcomes.sum()), len(outcomes), self.confidence)
            return Estimate(value=float(outcomes.mean()), low=found.low, high=found.high, how="Wilson")
        return self._estimate(sets, partial(_of_model, value, model))

    def _estimate(self, sets: Sequence[Answered], value: Statistic) -> Estimate:
        blocks = [s.block for s in sets]
        interval = stratified_bootstrap(blocks, value, SEED, self.draws, self.confidence)
        return Estimate(
            value=float(value([block.mean(axis=0) for block in blocks])),
            low=interval.low,
            high=interval.high,
            how="bootstrap over items",
        )

    def change(self, sets: Sequence[Answered], value: Statistic) -> Change:
        """Return the value of the second model minus that of the first."""
        found = self._estimate(sets, lambda means: _of_model(value, 1, means) - _of_model(value, 0, means))
        assert found.low is not None  # a bootstrap has both ends
        assert found.high is not None
        differ = enough_differ(
            [s.first[:, None] for s in sets], [s.second[:, None] for s in sets], self.confidence
        )
        return Change(
            value=found.value,
            low=found.low,
            high=found.high,
            how=PAIRED,
            resolved=differ and (found.low > 0 or found.high < 0),
            paired=True,
        )
