"""Estimate the registered metrics of a stream with intervals, and differences between runs or rows.

A metric reads the cells of some sets. Its registered function (`everclip.metrics`) computes it from scores, or from the
means of bootstrap draws. A key is the name of a metric in comparisons: `known` stands for `known_last`, and may be
computed at any row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from everclip.evaluation.cells import Cells, compute, metric_value, unmet
from everclip.evaluation.measurements import OLD_AND_NEW
from everclip.evaluation.results import Column
from everclip.evaluation.statistics import Interval, paired_bootstrap
from everclip.metrics import Metric, find, get
from everclip.report.intervals import (
    DRAWS,
    Array,
    difference_interval,
    enough_differ,
    stratified_bootstrap,
)
from everclip.report.runs import Run
from everclip.report.sensitivity import interval_of_cells, read_cells

TAUGHT = "taught"
"""Like `new`, but only over the tasks learned by the last row."""

SEED = 0

WILSON = "combined from the intervals of the sets, treated as independent (Wilson, Newcombe)"
BOOTSTRAP = "bootstrap over items"
PAIRED = "paired bootstrap over items"
UNKNOWN = "no intervals are available"


class Estimate(BaseModel):
    """A number with its interval; `how` says where the interval comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None = None
    high: float | None = None
    how: str = ""


class Change(Estimate):
    """A difference. `resolved`: its interval does not contain 0. `paired`: the same items were compared."""

    resolved: bool
    paired: bool = False

    @property
    def nothing(self) -> bool:
        """Whether not a single item changed, as with a method that trains nothing."""
        return self.paired and self.value == self.low == self.high == 0


@dataclass(frozen=True, eq=False)
class MetricCells:
    """A metric of a run and the cells that it reads.

    Attributes:
        metric: the metric.
        cells: the cells of all its sets, at all rows up to the metric's row.
        columns: the sets that it reads.
        places: the column index in `cells` of each of these sets.
        rows: the rows that it reads.
        protocol: the protocol under which these cells are scored.
    """

    metric: Metric
    cells: Cells
    columns: tuple[Column, ...]
    places: tuple[int, ...]
    rows: tuple[int, ...]
    protocol: str

    @property
    def value(self) -> float | None:
        """The value of the metric."""
        return metric_value(self.metric, self.cells)

    @property
    def is_one_cell(self) -> bool:
        """Whether the metric is just one score of the result."""
        if not len(self.columns) == len(self.rows) == 1:
            return False
        value = self.value
        # A mean over one set may be rounded.
        return value is not None and math.isclose(value, self.cells.scores[self.rows[0], self.places[0]])

    def statistic(self, means: Sequence[Array]) -> Array:
        """Return the metric `(D,)` from the scores `(D, R)` of each column that it reads."""
        shape = self.cells.scores.shape
        values = np.empty(len(means[0]))
        step = max(1, (1 << 20) // (shape[0] * shape[1]))
        for start in range(0, len(values), step):
            part = slice(start, start + step)
            scores = np.full((len(values[part]), *shape), math.nan)
            for place, drawn in zip(self.places, means, strict=True):
                scores[:, self.rows, place] = drawn[part]
            values[part] = compute(self.metric, self.cells.with_scores(scores))
        return values


def metric_of_key(key: str) -> Metric:
    """Return the metric of a key.

    Raises:
        ConfigError: if there is none.
    """
    if key == TAUGHT:
        return get("new_last", "stream")
    return find(f"{key}_last", "stream") or get(key, "stream")


def metric_cells(run: Run, key: str, row: int | None = None) -> MetricCells | None:
    """Return the cells that a metric reads at a row (default: the last one); `None` if it is not defined there."""
    row = run.last if row is None else row
    metric = metric_of_key(key)
    if row < 0 or ("matrix" in metric.needs and row != run.last):
        return None
    columns = run.measured.columns_of(metric.sets)
    if key == TAUGHT:
        columns = tuple(column for column in columns if column.task in run.learned(run.last))
    return _metric_cells(run, metric, columns, row)


def cells_of_columns(run: Run, name: str, columns: tuple[Column, ...]) -> MetricCells | None:
    """Return the cells that a metric of the tasks reads if other columns, one per task, stand for their sets."""
    return _metric_cells(run, get(name, "stream"), columns, run.last)


def _metric_cells(run: Run, metric: Metric, columns: tuple[Column, ...], row: int) -> MetricCells | None:
    cells = run.cells(metric.sets, columns).up_to(row)
    if unmet(metric, cells) is not None:
        return None
    rows, places = read_cells(metric, cells)
    if not rows:
        return None
    chosen = tuple(columns[place] for place in places)
    return MetricCells(metric, cells, chosen, places, rows, run.measured.protocol(metric.sets))


def estimate(run: Run, cells: MetricCells | None, draws: int = DRAWS) -> Estimate | None:
    """Return a metric with its interval; `None` if one of its cells is missing."""
    value = None if cells is None else cells.value
    if cells is None or value is None:
        return None
    if cells.metric.interval == "none":
        return Estimate(value=value)
    if cells.is_one_cell:
        score = run.score(cells.rows[0], cells.columns[0], cells.protocol)
        return Estimate(
            value=value, low=score and score.low, high=score and score.high, how="of the set itself"
        )
    # Several rows of one set share its items, so only outcomes per item show how the rows are correlated.
    blocks = _blocks(run, cells) if len(cells.rows) > 1 else None
    if blocks is not None:
        drawn = stratified_bootstrap(blocks, cells.statistic, SEED, draws, run.confidence)
        return Estimate(value=value, low=drawn.low, high=drawn.high, how=f"{BOOTSTRAP} ({draws:,} draws)")
    combined = _combined(run, cells)
    if combined is None:
        return Estimate(value=value)
    return Estimate(value=value, low=combined.low, high=combined.high, how=WILSON)


def at_last_row(run: Run, key: str, draws: int = DRAWS) -> Estimate | None:
    """Return a metric at the last row."""
    return estimate(run, metric_cells(run, key), draws)


def difference(
    first: Run, cells: MetricCells | None, second: Run, others: MetricCells | None, draws: int = DRAWS
) -> Change | None:
    """Return `first - second`, with a paired interval if both runs hold outcomes of the same items.

    Otherwise combine the intervals of both, and say so in `how`.
    """
    a, b = (None if side is None else side.value for side in (cells, others))
    if cells is None or others is None or a is None or b is None:
        return None
    value = a - b
    if cells.metric.interval == "none":
        return Change(value=value, resolved=False, how=UNKNOWN)
    blocks, other = _blocks(first, cells), _blocks(second, others)
    if blocks is not None and other is not None and [len(x) for x in blocks] == [len(x) for x in other]:
        return _paired(cells, others, blocks, other, value, first.confidence, draws)
    mine, theirs = _combined(first, cells), _combined(second, others)
    if mine is None or theirs is None:
        return Change(value=value, resolved=False, how=UNKNOWN)
    combined = difference_interval(a, mine, b, theirs)
    resolved = combined.low > 0 or combined.high < 0
    return Change(value=value, low=combined.low, high=combined.high, resolved=resolved, how=WILSON)


def mean_difference(
    first: Sequence[Run], second: Sequence[Run], key: str, draws: int = DRAWS
) -> Change | None:
    """Return `first - second`, both means over seeds, with an interval over items: each draw serves all seeds.

    The seeds are fixed, so the interval shows how other images would change the difference, not how other seeds would.
    Return `None` if a run holds no outcomes, or if the runs do not share sets and items.
    """
    if metric_of_key(key).interval == "none":
        return None
    per_run = [_outcomes(run, metric_cells(run, key)) for run in (*first, *second)]
    outcomes = [entry for entry in per_run if entry is not None]
    if len(outcomes) != len(per_run) or len({_sets(cells, blocks) for cells, blocks, _ in outcomes}) != 1:
        return None
    signs = [1 / len(first)] * len(first) + [-1 / len(second)] * len(second)
    edges = np.cumsum([0, *(len(cells.rows) for cells, *_ in outcomes)])

    def statistic(means: Sequence[Array]) -> Array:
        parts = [
            sign * cells.statistic([m[..., low:high] for m in means])
            for sign, (cells, *_), low, high in zip(signs, outcomes, edges[:-1], edges[1:], strict=True)
        ]
        return np.asarray(np.sum(parts, axis=0), dtype=np.float64)

    joined = [np.concatenate(columns, axis=1) for columns in zip(*(b for _, b, _ in outcomes), strict=True)]
    interval = stratified_bootstrap(joined, statistic, SEED, draws, first[0].confidence)
    mine = [_over_seeds(outcomes[: len(first)], place) for place in range(len(joined))]
    theirs = [_over_seeds(outcomes[len(first) :], place) for place in range(len(joined))]
    counts = " and ".join(str(n) for n in dict.fromkeys((len(first), len(second))))
    return Change(
        value=sum(sign * value for sign, (*_, value) in zip(signs, outcomes, strict=True)),
        low=interval.low,
        high=interval.high,
        resolved=_resolved(interval, mine, theirs, first[0].confidence),
        paired=True,
        how=f"{PAIRED} ({draws:,} draws), means over {counts} seeds",
    )


def _outcomes(run: Run, cells: MetricCells | None) -> tuple[MetricCells, list[Array], float] | None:
    value = None if cells is None else cells.value
    blocks = None if cells is None else _blocks(run, cells)
    return None if cells is None or value is None or blocks is None else (cells, blocks, value)


def _sets(cells: MetricCells, blocks: Sequence[Array]) -> tuple[tuple[str, int], ...]:
    return tuple((column.name, len(block)) for column, block in zip(cells.columns, blocks, strict=True))


def _over_seeds(outcomes: Sequence[tuple[MetricCells, list[Array], float]], place: int) -> Array:
    """Return the outcomes `(N, R)` of one set, averaged over the runs; of the last row alone if their rows differ."""
    blocks = [blocks[place] for _, blocks, _ in outcomes]
    if len({block.shape for block in blocks}) > 1:
        blocks = [block[:, -1:] for block in blocks]
    return np.asarray(np.mean(np.stack(blocks), axis=0), dtype=np.float64)


def _resolved(interval: Interval, mine: Sequence[Array], theirs: Sequence[Array], level: float) -> bool:
    same_rows = all(a.shape == b.shape for a, b in zip(mine, theirs, strict=True))
    resolved = interval.low > 0 or interval.high < 0
    return resolved and (not same_rows or enough_differ(mine, theirs, level))


def _paired(
    cells: MetricCells,
    others: MetricCells,
    blocks: list[Array],
    other: list[Array],
    value: float,
    level: float,
    draws: int,
) -> Change:
    how = f"{PAIRED} ({draws:,} draws)"
    if cells.is_one_cell and others.is_one_cell:
        drawn = paired_bootstrap(blocks[0][:, 0], other[0][:, 0], SEED, draws, level)
        return Change(
            value=value, low=drawn.low, high=drawn.high, resolved=drawn.resolved, paired=True, how=how
        )

    def statistic(means: Sequence[Array]) -> Array:
        width = len(cells.rows)
        return cells.statistic([m[..., :width] for m in means]) - others.statistic(
            [m[..., width:] for m in means]
        )

    joined = [np.concatenate(pair, axis=1) for pair in zip(blocks, other, strict=True)]
    interval = stratified_bootstrap(joined, statistic, SEED, draws, level)
    resolved = _resolved(interval, blocks, other, level)
    return Change(value=value, low=interval.low, high=interval.high, resolved=resolved, paired=True, how=how)


def change_since_start(run: Run, key: str, row: int | None = None, draws: int = DRAWS) -> Change | None:
    """Return the change of a metric from row 0 to a row (default: the last one)."""
    row = run.last if row is None else row
    if row < 1:
        return None
    now, before = metric_cells(run, key, row), metric_cells(run, key, 0)
    if is_together(key) and (now is None or before is None or now.columns != before.columns):
        return None  # at row 0 the label space held fewer classes
    return difference(run, now, run, before, draws)


def column_change(run: Run, column: Column, row: int, since: int, draws: int = DRAWS) -> Change | None:
    """Return the change of one set between two rows."""
    level = get("new_last", "stream")
    now, before = (_metric_cells(run, level, (column,), place) for place in (row, since))
    return difference(run, now, run, before, draws)


def is_together(key: str) -> bool:
    """Whether a metric is scored in the label space of all sets: see `everclip.evaluation.old_and_new`."""
    return metric_of_key(key).sets in OLD_AND_NEW


def _blocks(run: Run, cells: MetricCells) -> list[Array] | None:
    """Return per column the outcomes `(N, R)` of its items at the rows; `None` if some are missing."""
    blocks: list[Array] = []
    for column in cells.columns:
        rows = [run.outcomes(row, column, cells.protocol) for row in cells.rows]
        outcomes = [values for values in rows if values is not None]
        if len(outcomes) != len(rows) or len({len(values) for values in outcomes}) != 1:
            return None
        blocks.append(np.stack(outcomes, axis=1))
    return blocks


def _combined(run: Run, cells: MetricCells) -> Interval | None:
    """Combine the intervals of the cells; `None` if a cell has no interval."""
    low, high = (np.full(cells.cells.scores.shape, math.nan) for _ in range(2))
    for column, place in zip(cells.columns, cells.places, strict=True):
        for row in cells.rows:
            score = run.score(row, column, cells.protocol)
            if score is not None and score.low is not None and score.high is not None:
                low[row, place], high[row, place] = score.low, score.high
    return interval_of_cells(cells.metric, cells.cells, low, high)
