"""Two models that answer the same items: values of each with intervals, and paired differences."""

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


def mean_of_sets(means: Sequence[Array]) -> Array:
    """Return the mean over sets."""
    return np.asarray(np.mean(means, axis=0))


def _of_model(value: Statistic, model: int, means: Sequence[Array]) -> Array:
    """Return a value of one model from the means of both, `(..., 2)` per set."""
    return value([both[..., model] for both in means])


@dataclass(frozen=True)
class PairedMeasure:
    """Measures values of two models that answer the same items; a bootstrap resamples items within each set."""

    confidence: float
    draws: int = DRAWS

    def of_set(self, s: Answered) -> SetPair:
        """Return the scores of one set."""
        both = self.pair([s], mean_of_sets)
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

    def ratio(self, sets: Sequence[Answered]) -> Estimate | None:
        """Return the mean over sets of the second model divided by that of the first; `None` if the first is 0."""
        if not float(mean_of_sets([s.first.mean(axis=0) for s in sets])):
            return None

        def divided(means: Sequence[Array]) -> Array:
            first, second = (_of_model(mean_of_sets, model, means) for model in (0, 1))
            return np.divide(second, first, out=np.full_like(second, np.inf), where=first > 0)

        with np.errstate(invalid="ignore"):
            found = self._estimate(sets, divided)
        if found.low is None or found.high is None or not np.isfinite([found.low, found.high]).all():
            return Estimate(value=found.value)  # in some resamples the first model has nothing right
        return found
