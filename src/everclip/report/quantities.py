"""The few numbers a run is judged by, each with its interval, and differences of them.

A quantity names cells of the score matrix by the *group* of their column (known, task, retention), never by the
name of a set, so it means the same for every benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from everclip.evaluation.results import Column
from everclip.evaluation.statistics import Interval, paired_bootstrap
from everclip.report.intervals import (
    DRAWS,
    Array,
    difference_interval,
    enough_differ,
    mean_interval,
    stratified_bootstrap,
)
from everclip.report.runs import Run

Key = Literal[
    "known",
    "new",
    "taught",
    "retention",
    "everything",
    "everything_old",
    "everything_new",
    "average",
    "forgetting",
    "transfer",
    "stage_last",
    "stage_average",
]
TOGETHER: dict[Key, str] = {
    "everything": "everything",
    "everything_old": "old",
    "everything_new": "new",
}
"""What is scored among the answers of all sets, every item counting once: see `everclip.evaluation.together`."""

STAGES = ("stage_last", "stage_average")
"""What class-incremental tables hold: numbers of the result itself, whose intervals seeds alone give."""

MATRIX = ("average", "forgetting", "transfer")
"""What the whole score matrix makes up, one row per task."""

SEED = 0

WILSON = "intervals of the sets, taken as independent (Wilson, Newcombe)"
BOOTSTRAP = "bootstrap over items"
PAIRED = "paired bootstrap over items"


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


@dataclass(frozen=True)
class Terms:
    """Which cells make up a quantity: every column at every row, as a mean or as forgetting.

    Of `transfer` the k-th column counts at the first k rows alone: before its task was learned (arXiv 2303.06628).
    A mean weighs columns by `weights`, alike by default; `under` is a protocol in place of the headline's.
    """

    columns: tuple[Column, ...]
    rows: tuple[int, ...]
    kind: Literal["mean", "forgetting", "transfer"] = "mean"
    weights: tuple[int, ...] | None = None
    under: str | None = None

    def statistic(self, means: Sequence[Array]) -> Array:
        """Return the quantity from the scores `(..., R)` of each column."""
        if self.kind == "mean":
            parts = [values.mean(axis=-1) for values in means]
        elif self.kind == "transfer":
            parts = [values[..., :k].mean(axis=-1) for k, values in enumerate(means, start=1)]
        else:
            parts = [values[..., :-1].max(axis=-1) - values[..., -1] for values in means]
        return np.asarray(np.average(parts, axis=0, weights=self.weights), dtype=np.float64)


def terms(run: Run, key: Key, row: int | None = None) -> Terms | None:
    """Return the cells of a quantity at a row (the last one by default); `None` where it has none."""
    row = run.last if row is None else row
    if row < 0 or key in STAGES:
        return None
    if key in MATRIX:
        return _matrix_terms(run, key) if row == run.last else None
    if key in TOGETHER:
        return _together_terms(run, TOGETHER[key], row)
    columns = run.columns("task" if key in ("new", "taught") else "known" if key == "known" else "retention")
    if key == "taught":
        learned = run.learned(run.last)
        columns = [column for column in columns if column.task in learned]
    return Terms(tuple(columns), (row,)) if columns else None


def _together_terms(run: Run, part: str, row: int) -> Terms | None:
    how = run.together
    if isinstance(how, str):
        return None
    columns = how.columns(part, run.learned(row))
    if not columns:
        return None
    counts = [score.n if (score := run.score(row, c, how.protocol)) else 0 for c in columns]
    return Terms(columns, (row,), weights=tuple(n or 1 for n in counts), under=how.protocol)


def _matrix_terms(run: Run, key: str) -> Terms | None:
    # The metric itself decides whether it is defined (square matrix, no cell missing); here only its cells.
    if run.results.metrics.get(key) is None:
        return None
    columns, rows = run.columns("task"), tuple(range(1, len(run.results.rows)))
    if len(columns) != len(rows):
        return None
    if key == "average":
        return Terms(tuple(columns), rows)
    if key == "transfer":
        return Terms(tuple(columns[1:]), rows, "transfer")
    return Terms(tuple(columns[:-1]), rows, "forgetting")


def estimate(run: Run, cells: Terms | None, draws: int = DRAWS) -> Estimate | None:
    """Return a quantity with its interval; `None` as soon as one of its cells is missing."""
    scores = None if cells is None else _scores(run, cells)
    if cells is None or scores is None:
        return None
    value = float(cells.statistic(scores))
    if len(cells.columns) == len(cells.rows) == 1:
        score = run.score(cells.rows[0], cells.columns[0], cells.under)
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


def metric(run: Run, key: Key, draws: int = DRAWS) -> Estimate | None:
    """Return a quantity at the last row; what the result itself holds wins over a recomputation."""
    found = estimate(run, terms(run, key), draws)
    if key not in (*MATRIX, *STAGES):
        return found
    value = run.results.metrics.get(key)
    if value is None:
        return None
    return found if found is not None and abs(found.value - value) < 1e-6 else Estimate(value=value)


def difference(
    first: Run, cells: Terms | None, second: Run, others: Terms | None, draws: int = DRAWS
) -> Change | None:
    """Return `first - second` with a paired interval where both hold outcomes of the same items.

    Falls back to the intervals of each, and says so in `how`.
    """
    a, b = estimate(first, cells, 1), estimate(second, others, 1)
    if cells is None or others is None or a is None or b is None:
        return None
    value = a.value - b.value
    blocks, other = _blocks(first, cells), _blocks(second, others)
    if blocks is not None and other is not None and [len(x) for x in blocks] == [len(x) for x in other]:
        return _paired(cells, others, blocks, other, value, first.confidence, draws)
    mine, theirs = _combined(first, cells), _combined(second, others)
    if mine is None or theirs is None:
        return Change(value=value, resolved=False, how="no intervals are known")
    found = difference_interval(a.value, mine, b.value, theirs)
    return Change(
        value=value, low=found.low, high=found.high, resolved=found.low > 0 or found.high < 0, how=WILSON
    )


def mean_difference(
    first: Sequence[Run], second: Sequence[Run], key: Key, draws: int = DRAWS
) -> Change | None:
    """Return `first - second`, both means over seeds, with an interval over items: all seeds see those drawn.

    The seeds are taken as they are, so that the interval says what other pictures would change, not other seeds.
    `None` as soon as a run holds no outcomes, or theirs are not those of the same sets and items.
    """
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
    same_rows = all(a.shape == b.shape for a, b in zip(mine, theirs, strict=True))
    resolved = interval.low > 0 or interval.high < 0
    counts = " and ".join(str(n) for n in dict.fromkeys((len(first), len(second))))
    return Change(
        value=sum(sign * value for sign, (*_, value) in zip(signs, held, strict=True)),
        low=interval.low,
        high=interval.high,
        resolved=resolved and (not same_rows or enough_differ(mine, theirs, first[0].confidence)),
        paired=True,
        how=f"{PAIRED} ({draws:,} draws), means over {counts} seeds",
    )


def _outcomes(run: Run, cells: Terms | None) -> tuple[Terms, list[Array], float] | None:
    found = estimate(run, cells, 1)
    blocks = None if cells is None else _blocks(run, cells)
    return None if cells is None or found is None or blocks is None else (cells, blocks, found.value)


def _sets(cells: Terms, blocks: Sequence[Array]) -> tuple[tuple[str, int], ...]:
    return tuple((column.name, len(block)) for column, block in zip(cells.columns, blocks, strict=True))


def _over_seeds(held: Sequence[tuple[Terms, list[Array], float]], place: int) -> Array:
    """Return the outcomes `(N, R)` of one set, each its mean over the runs; of one row where their rows differ."""
    blocks = [blocks[place] for _, blocks, _ in held]
    if len({block.shape for block in blocks}) > 1:
        blocks = [block[:, -1:] for block in blocks]
    return np.asarray(np.mean(np.stack(blocks), axis=0), dtype=np.float64)


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
    if len(blocks) == 1 and cells.kind == "mean":
        found = paired_bootstrap(blocks[0].mean(axis=1), other[0].mean(axis=1), SEED, draws, level)
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
    same_rows = all(a.shape == b.shape for a, b in zip(blocks, other, strict=True))
    resolved = interval.low > 0 or interval.high < 0
    resolved = resolved and (not same_rows or enough_differ(blocks, other, level))
    return Change(value=value, low=interval.low, high=interval.high, resolved=resolved, paired=True, how=how)


def change_since_start(run: Run, key: Key, row: int | None = None, draws: int = DRAWS) -> Change | None:
    """Return how a quantity moved between row 0 and a row (the last one by default)."""
    row = run.last if row is None else row
    if row < 1:
        return None
    now, before = terms(run, key, row), terms(run, key, 0)
    if key in TOGETHER and (now is None or before is None or now.columns != before.columns):
        return None  # other sets among fewer answers
    return difference(run, now, run, before, draws)


def column_change(run: Run, column: Column, row: int, since: int, draws: int = DRAWS) -> Change | None:
    """Return how one set moved between two rows."""
    return difference(run, Terms((column,), (row,)), run, Terms((column,), (since,)), draws)


def _scores(run: Run, cells: Terms) -> list[Array] | None:
    columns: list[Array] = []
    for column in cells.columns:
        values = [
            score.value if (score := run.score(row, column, cells.under)) else None for row in cells.rows
        ]
        if any(value is None for value in values):
            return None
        columns.append(np.array(values, dtype=np.float64))
    return columns or None


def _blocks(run: Run, cells: Terms) -> list[Array] | None:
    """Per column `(N, R)` outcomes of its items at the rows."""
    blocks: list[Array] = []
    for column in cells.columns:
        rows = [run.outcomes(row, column, cells.under) for row in cells.rows]
        held = [values for values in rows if values is not None]
        if len(held) != len(rows) or len({len(values) for values in held}) != 1:
            return None
        blocks.append(np.stack(held, axis=1))
    return blocks


def _combined(run: Run, cells: Terms) -> Interval | None:
    values: list[float] = []
    parts: list[Interval] = []
    for place, column in enumerate(cells.columns, start=1):
        rows = cells.rows[:place] if cells.kind == "transfer" else cells.rows
        row = [_known_interval(run, index, column, cells.under) for index in rows]
        found = [entry for entry in row if entry is not None]
        if len(found) != len(row):
            return None
        if cells.kind == "forgetting":
            best, now = max(found[:-1], key=lambda entry: entry[0]), found[-1]
            values.append(best[0] - now[0])
            parts.append(difference_interval(*best, *now))
        else:
            # Rows of one set share its items; taking them as fully dependent errs on the wide side.
            values.append(sum(value for value, _ in found) / len(found))
            low, high = (sum(getattr(part, end) for _, part in found) / len(found) for end in ("low", "high"))
            parts.append(Interval(low, high))
    return mean_interval(values, parts, cells.weights)


def _known_interval(
    run: Run, row: int, column: Column, under: str | None = None
) -> tuple[float, Interval] | None:
    score = run.score(row, column, under)
    if score is None or score.value is None or score.low is None or score.high is None:
        return None
    return score.value, Interval(score.low, score.high)
