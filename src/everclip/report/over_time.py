"""Two models against each other on a static suite and on dated test sets: what does a static test hide?

After the first figure of TiC-CLIP (Garg et al., ICLR 2024, arXiv 2310.16226): models that a static suite does not tell
apart may differ on data of later years. All intervals are bootstraps over items; differences are paired, since both
models answer the same items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from everclip.report.estimates import Change
from everclip.report.intervals import DRAWS, Array
from everclip.report.paired import Answered, Pair, PairedMeasure, SetPair, mean_of_sets


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
    measure = PairedMeasure(confidence, draws)
    ends = [dated[0], dated[-1]]
    return OverTime(
        models=models,
        benchmark=benchmark,
        protocol=protocol,
        confidence=confidence,
        static=measure.pair(static, mean_of_sets) if static else None,
        static_sets=[measure.of_set(s) for s in static],
        dated=[measure.of_set(s) for s in dated],
        trend=measure.pair(ends, _rise) if len(dated) > 1 else None,
        beyond_static=measure.change([*static, dated[-1]], _last_minus_others) if static else None,
        notes=list(notes),
    )


def _rise(means: Sequence[Array]) -> Array:
    """Return the last set minus the first."""
    return np.asarray(means[-1] - means[0])


def _last_minus_others(means: Sequence[Array]) -> Array:
    """Return the last set minus the mean of the others."""
    return np.asarray(means[-1] - mean_of_sets(means[:-1]))
