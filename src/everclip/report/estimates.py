"""The registered metrics of a stream as a report sees them: each with its interval, and differences of them.

A metric reads the cells of some sets. Its registered function (`everclip.metrics`) computes it, from scores as from the
means of a bootstrap's draws. A key is the name that comparisons give a metric: `known` is `known_last`, at the last row
or at any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from everclip.evaluation.cells import Cells, compute, metric_value, unmet
from everclip.evaluation.measurements import TOGETHER
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
"""As `new`, over the tasks that were learned by the last row."""

SEED = 0

WILSON = "intervals of the sets, taken as independent (Wilson, Newcombe)"
BOOTSTRAP = "bootstrap over items"
PAIRED = "paired bootstrap over items"
UNKNOWN = "no intervals are known"


class Estimate(BaseModel):
    """A number with its interval; `how` says where the interval comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None = None
    high: float | None = None
    how: str = ""


class Change(Estimate):
    """A difference. `resolved` says that it may be called one; `paired` that the same items were compared."""

    resolved: bool
    paired: bool = False

    @property
    def nothing(self) -> bool:
        """Whether not a single item changed, as for a method that trains nothing."""
        return self.paired and self.value == self.low == self.high == 0


@dataclass(frozen=True, eq=False)
class Terms:
    """A metric of a run and the cells that it reads.

    Attributes:
        metric: the metric.
        cells: of all its sets, at all rows up to that of the metric.
        columns: those sets that it reads, at the places `places` of the cells.
        rows: the rows that it reads.
        protocol: under which these are scored.
    """

    metric: Metric
    cells: Cells
    columns: tuple[Column, ...]
    places: tuple[int, ...]
    rows: tuple[int, ...]
    protocol: str

    @property
    def value(self) -> float | None:
        """The metric itself."""
        return metric_value(self.metric, self.cells)

    @property
    def is_one_cell(self) -> bool:
        """Whether it is nothing but one score of the result."""
        if not len(self.columns) == len(self.rows) == 1:
            return False
        value = self.value
        # A mean over one set may be rounded.
        return value is not None and math.isclose(value, self.cells.scores[self.rows[0], self.places[0]])

    def statistic(self, means: Sequence[Array]) -> Array:
        """Return the metric `(D,)` from the scores `(D, R)` of each column that it reads."""
        shape = self.cells.scores.shape
        found = np.empty(len(means[0]))
        step = max(1, (1 << 20) // (shape[0] * shape[1]))
        for start in range(0, len(found), step):
            part = slice(start, start + step)
            scores = np.full((len(found[part]), *shape), math.nan)
            for place, drawn in zip(self.places, means, strict=True):
                scores[:, self.rows, place] = drawn[part]
            found[part] = compute(self.metric, self.cells.holding(scores))
        return found


def metric_of_key(key: str) -> Metric:
    """Return the metric of a key.

    Raises:
        ConfigError: if there is none.
    """
    if key == TAUGHT:
        return get("new_last", "stream")
    return find(f"{key}_last", "stream") or get(key, "stream")


def terms(run: Run, key: str, row: int | None = None) -> Terms | None:
    """Return the cells that a metric reads at a row (the last one by default); `None` if it is not defined."""
    row = run.last if row is None else row
    metric = metric_of_key(key)
    if row < 0 or ("matrix" in metric.needs and row != run.last):
        return None
    columns = run.measured.columns_of(metric.sets)
    if key == TAUGHT:
        columns = tuple(column for column in columns if column.task in run.learned(run.last))
    return _terms(run, metric, columns, row)


def _terms(run: Run, metric: Metric, columns: tuple[Column, ...], row: int) -> Terms | None:
    cells = run.cells(metric.sets, columns).upto(row)
    if unmet(metric, cells) is not None:
        return None
    rows, places = read_cells(metric, cells)
    if not rows:
        return None
    chosen = tuple(columns[place] for place in places)
    return Terms(metric, cells, chosen, places, rows, run.measured.protocol(metric.sets))


def estimate(run: Run, cells: Terms | None, draws: int = DRAWS) -> Estimate | None:
    """Return a metric with its interval; `None` as soon as one of its cells is missing."""
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
    # Several rows of one set hold the same items, so only their outcomes tell how they move together.
    blocks = _blocks(run, cells) if len(cells.rows) > 1 else None
    if blocks is not None:
        found = stratified_bootstrap(blocks, cells.statistic, SEED, draws, run.confidence)
        return Estimate(value=value, low=found.low, high=found.high, how=f"{BOOTSTRAP} ({draws:,} draws)")
    combined = _combined(run, cells)
    if combined is None:
        return Estimate(value=value)
    return Estimate(value=value, low=combined.low, high=combined.high, how=WILSON)


def at_end(run: Run, key: str, draws: int = DRAWS) -> Estimate | None:
    """Return a metric at the last row."""
    return estimate(run, terms(run, key), draws)


def difference(
    first: Run, cells: Terms | None, second: Run, others: Terms | None, draws: int = DRAWS
) -> Change | None:
    """Return `first - second` with a paired interval where both hold outcomes of the same items.

    Falls back to the intervals of each, and says so in `how`.
    """
    a, b = (None if found is None else found.value for found in (cells, others))
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
    found = difference_interval(a, mine, b, theirs)
    return Change(
        value=value, low=found.low, high=found.high, resolved=found.low > 0 or found.high < 0, how=WILSON
    )


def mean_difference(
    first: Sequence[Run], second: Sequence[Run], key: str, draws: int = DRAWS
) -> Change | None:
    """Return `first - second`, both means over seeds, with an interval over items: all seeds see those drawn.

    The seeds are taken as they are, so that the interval says what other pictures would change, not other seeds.
    `None` as soon as a run holds no outcomes, or theirs are not those of the same sets and items.
    """
    if metric_of_key(key).interval == "none":
        return None
    found = [_outcomes(run, terms(run, key)) for run in (*first, *second)]
    held = [entry for entry in found if entry is not None]
    if len(held) != len(found) or len({_sets(cells, blocks) for cells, blocks, _ in held}) != 1:
        return None
    signs = [1 / len(first)] * len(first) + [-1 / len(second)] * len(second)
    edges = np.cumsum([0, *(len(cells.rows) for cells, *_ in held)])

    def statistic(means: Sequence[Array]) -> Array:
        parts = [
            sign * cells.statistic([m[..., low:high] for m in means])
            for sign, (cells, *_), low, high in zip(signs, held, edges[:-1], edges[1:], strict=True)
        ]
        return np.asarray(np.sum(parts, axis=0), dtype=np.float64)

    joined = [np.concatenate(columns, axis=1) for columns in zip(*(b for _, b, _ in held), strict=True)]
    interval = stratified_bootstrap(joined, statistic, SEED, draws, first[0].confidence)
    mine = [_over_seeds(held[: len(first)], place) for place in range(len(joined))]
    theirs = [_over_seeds(held[len(first) :], place) for place in range(len(joined))]
    counts = " and ".join(str(n) for n in dict.fromkeys((len(first), len(second))))
    return Change(
        value=sum(sign * value for sign, (*_, value) in zip(signs, held, strict=True)),
        low=interval.low,
        high=interval.high,
        resolved=_resolved(interval, mine, theirs, first[0].confidence),
        paired=True,
        how=f"{PAIRED} ({draws:,} draws), means over {counts} seeds",
    )


def _outcomes(run: Run, cells: Terms | None) -> tuple[Terms, list[Array], float] | None:
    value = None if cells is None else cells.value
    blocks = None if cells is None else _blocks(run, cells)
    return None if cells is None or value is None or blocks is None else (cells, blocks, value)


def _sets(cells: Terms, blocks: Sequence[Array]) -> tuple[tuple[str, int], ...]:
    return tuple((column.name, len(block)) for column, block in zip(cells.columns, blocks, strict=True))


def _over_seeds(held: Sequence[tuple[Terms, list[Array], float]], place: int) -> Array:
    """Return the outcomes `(N, R)` of one set, each its mean over the runs; of one row where their rows differ."""
    blocks = [blocks[place] for _, blocks, _ in held]
    if len({block.shape for block in blocks}) > 1:
        blocks = [block[:, -1:] for block in blocks]
    return np.asarray(np.mean(np.stack(blocks), axis=0), dtype=np.float64)


def _resolved(interval: Interval, mine: Sequence[Array], theirs: Sequence[Array], level: float) -> bool:
    same_rows = all(a.shape == b.shape for a, b in zip(mine, theirs, strict=True))
    resolved = interval.low > 0 or interval.high < 0
    return resolved and (not same_rows or enough_differ(mine, theirs, level))


def _paired(
    cells: Terms,
    others: Terms,
    blocks: list[Array],
    other: list[Array],
    value: float,
    level: float,
    draws: int,
) -> Change:
    how = f"{PAIRED} ({draws:,} draws)"
    if cells.is_one_cell and others.is_one_cell:
        found = paired_bootstrap(blocks[0][:, 0], other[0][:, 0], SEED, draws, level)
        return Change(
            value=value, low=found.low, high=found.high, resolved=found.resolved, paired=True, how=how
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
    """Return how a metric moved between row 0 and a row (the last one by default)."""
    row = run.last if row is None else row
    if row < 1:
        return None
    now, before = terms(run, key, row), terms(run, key, 0)
    if is_together(key) and (now is None or before is None or now.columns != before.columns):
        return None  # other sets among fewer answers
    return difference(run, now, run, before, draws)


def column_change(run: Run, column: Column, row: int, since: int, draws: int = DRAWS) -> Change | None:
    """Return how one set moved between two rows."""
    level = get("new_last", "stream")
    now, before = (_terms(run, level, (column,), place) for place in (row, since))
    return difference(run, now, run, before, draws)


def is_together(key: str) -> bool:
    """Whether a metric is scored among the answers of all sets: see `everclip.evaluation.together`."""
    return metric_of_key(key).sets in TOGETHER


def _blocks(run: Run, cells: Terms) -> list[Array] | None:
    """Per column `(N, R)` outcomes of its items at the rows."""
    blocks: list[Array] = []
    for column in cells.columns:
        rows = [run.outcomes(row, column, cells.protocol) for row in cells.rows]
        held = [values for values in rows if values is not None]
        if len(held) != len(rows) or len({len(values) for values in held}) != 1:
            return None
        blocks.append(np.stack(held, axis=1))
    return blocks


def _combined(run: Run, terms: Terms) -> Interval | None:
    """Combine the intervals of the cells; `None` as soon as one has none."""
    low, high = (np.full(terms.cells.scores.shape, math.nan) for _ in range(2))
    for column, place in zip(terms.columns, terms.places, strict=True):
        for row in terms.rows:
            score = run.score(row, column, terms.protocol)
            if score is not None and score.low is not None and score.high is not None:
                low[row, place], high[row, place] = score.low, score.high
    return interval_of_cells(terms.metric, terms.cells, low, high)
