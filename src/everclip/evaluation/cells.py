"""The scores of some evaluation sets over the rows of a run, as arrays. Metrics of a stream are computed from them.

Undefined values are NaN in these arrays, and `None` outside. NaN propagates, so a metric is undefined if a cell in its
formula is missing; other cells may be missing. (A mean over fewer cells would be another metric.) An exact 0 is a
score like any other.

Leading dimensions hold bootstrap draws, so that one function computes a value and its interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from everclip.errors import ConfigError
from everclip.metrics import Metric, Need

Array = NDArray[np.float64]
Row = Sequence[float | None]


@dataclass(frozen=True, eq=False)
class Cells:
    """Scores of C evaluation sets at R rows.

    Attributes:
        scores: `(..., R, C)`; row 0 is the model before training. NaN means no such cell.
        samples: `(R, C)`, the number of items behind each score.
        learned: `(R, C)` bool: whether the set counts at that row, because its task was learned by then.
        growing: whether the label space grows from row to row, so that no row can be compared with row 0.
        at: of a stream that is seen once, per row `every`, `part`, both or neither (`everclip.evaluation.results.Row`).
        classes: `(R, K)`, the accuracy of each class of such a stream; NaN means that it was not measured.
    """

    scores: Array
    samples: NDArray[np.int64]
    learned: NDArray[np.bool_]
    growing: bool = False
    at: tuple[tuple[str, ...], ...] = ()
    classes: Array | None = None

    @classmethod
    def of(
        cls,
        before: Row | None,
        after: Sequence[Row],
        samples: Sequence[Sequence[int]] | None = None,
        learned: Sequence[Sequence[bool]] | None = None,
        growing: bool = False,
    ) -> Cells:
        """Make cells from lists; `None` means no such cell.

        Args:
            before: the scores before training, one per set; `None` if they were not measured.
            after: the scores after each task.
            samples: per row (the first is before training) and set; default: 1.
            learned: per row and set; default: the k-th set counts from the k-th row on.
            growing: see the class.

        Raises:
            ValueError: if rows differ in length, or a score is NaN or infinite.
        """
        width = len(before) if before is not None else len(after[0]) if after else 0
        table = [[None] * width if before is None else before, *after]
        for i, row in enumerate(table):
            if len(row) != width:
                raise ValueError(f"row {i} has {len(row)} columns, the first has {width}")
            for j, value in enumerate(row):
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"the score at row {i}, column {j} is {value}")
        scores = np.array([[math.nan if v is None else v for v in row] for row in table], dtype=np.float64)
        shape = (len(table), width)
        return cls(
            scores.reshape(shape),
            np.ones(shape, np.int64) if samples is None else np.array(samples, np.int64).reshape(shape),
            np.tri(*shape, -1, dtype=np.bool_)
            if learned is None
            else np.array(learned, np.bool_).reshape(shape),
            growing,
        )

    @property
    def before(self) -> Array:
        """`(..., C)`: the scores before training."""
        return self.scores[..., 0, :]

    @property
    def after(self) -> Array:
        """`(..., R - 1, C)`: the scores after each task; `(..., T, T)` for a metric that needs the matrix."""
        return self.scores[..., 1:, :]

    @property
    def last(self) -> Array:
        """`(..., C)`: the scores at the last row, which is row 0 if no task was learned yet."""
        return self.scores[..., -1, :]

    def up_to(self, row: int) -> Cells:
        """Return the cells of the rows up to and including `row`."""
        part = slice(0, row + 1)
        classes = None if self.classes is None else self.classes[part]
        scores, samples, learned = self.scores[..., part, :], self.samples[part], self.learned[part]
        return Cells(scores, samples, learned, self.growing, self.at[part], classes)

    def with_scores(self, scores: Array) -> Cells:
        """Return the same sets and rows with other scores, `(..., R, C)`."""
        return replace(self, scores=scores)


def unmet(metric: Metric, cells: Cells) -> Need | None:
    """Return the first need of the metric that these cells do not meet; `None` if it can be computed."""
    rows, sets = cells.scores.shape[-2] - 1, cells.scores.shape[-1]
    lacks: dict[Need, bool] = {
        "rows": rows < 1,
        "matrix": rows != sets or not sets,
        "two tasks": sets < 2,
        "fixed answers": cells.growing,
        "seen once": not any(cells.at),
    }
    return next((need for need in metric.needs if lacks.get(need, not sets)), None)


def compute(metric: Metric, cells: Cells) -> Array:
    """Return a metric `(...)`; NaN if it is undefined.

    Raises:
        ConfigError: if its function does not keep the leading axes.
    """
    if unmet(metric, cells) is not None:
        return np.full(cells.scores.shape[:-2], math.nan)
    found = np.asarray(metric.function(cells), dtype=np.float64)
    if found.shape != cells.scores.shape[:-2]:
        raise ConfigError(
            f"metric {metric.name!r} ({metric.function.__module__}): of scores {cells.scores.shape} it returned the "
            f"shape {found.shape}, expected {cells.scores.shape[:-2]}; compute over the last two axes (axis=-1)."
        )
    return found


def metric_value(metric: Metric, cells: Cells) -> float | None:
    """Return a metric of cells without leading dimensions; `None` if it is undefined."""
    # With one draw, so that a wrong axis is found here and not at the first bootstrap.
    compute(metric, cells.with_scores(cells.scores[None]))
    value = float(compute(metric, cells))
    return None if math.isnan(value) else value


def mean(values: Array, axes: int = 1) -> Array:
    """Return the mean over the last axes; NaN if they are empty.

    Without leading dimensions it is exact up to one rounding, so the order of the tasks cannot change it. Draws are
    summed in order.
    """
    if values.ndim == axes:
        return np.asarray(math.fsum(values.ravel().tolist()) / values.size if values.size else math.nan)
    for axis in range(-axes, 0):
        count = values.shape[axis]
        total = in_order(np.moveaxis(values, axis, -1))
        values = total / count if count else np.full(total.shape, math.nan)
    return values


def in_order(values: Array) -> Array:
    """Return the sum over the last axis, added one by one in order."""
    total = np.zeros(values.shape[:-1])
    for k in range(values.shape[-1]):
        total = total + values[..., k]
    return total
