"""The metrics of a score matrix given as lists, as tests write them."""

from __future__ import annotations

from collections.abc import Sequence

from everclip.evaluation.cells import Cells, Row, metric_value
from everclip.metrics import get, metrics


def of(name: str, scores: Sequence[Row], before: Row | None = None) -> float | None:
    """Return one metric of rows x sets and the row before training."""
    return metric_value(get(name, "stream"), Cells.of(before, scores))


def summary(
    scores: Sequence[Row],
    before: Row | None,
    suite_before: Row | None = None,
    suite_after: Row | None = None,
) -> dict[str, float | None]:
    """Return the metrics of the score matrix, and those of a retention suite before and at the end."""
    suite = Cells.of(suite_before or [], [suite_after or []] if suite_after else [])
    names = ("suite_degradation", "suite_relative", "worst_retention_drop")
    return {
        name: metric_value(entry, Cells.of(before, scores))
        for name, entry in metrics("stream").items()
        if entry.function.__module__.endswith(".matrix")
    } | {name: metric_value(get(name, "stream"), suite) for name in names}
