"""Find by trial which cells a metric reads, and how much it changes with each. So no metric has to declare it."""

from __future__ import annotations

import math

import numpy as np

from everclip.evaluation.cells import Array, Cells, compute
from everclip.evaluation.statistics import Interval
from everclip.metrics import Metric

_STEP = 2.0**-20
_TIE_BREAK = 2.0**-18
"""Added distance between equal scores of one set, the earliest highest, so that only one of them is the best."""


def read_cells(metric: Metric, cells: Cells) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the rows and the columns that a metric reads: without them it is undefined.

    A metric of the matrix counts as reading all rows from 1 on, so that bootstrap draws show it the whole matrix.
    """
    rows, columns = cells.scores.shape
    tried = np.full((rows + columns + 1, rows, columns), 0.5)
    for row in range(rows):
        tried[row, row] = math.nan
    for column in range(columns):
        tried[rows + column, :, column] = math.nan
    undefined = np.isnan(compute(metric, cells.with_scores(tried)))
    if undefined[-1]:  # without a missing cell
        return (), ()
    read = np.flatnonzero(undefined[:rows])
    if "matrix" in metric.needs:
        read = np.union1d(read, np.arange(1, rows))
    return tuple(int(row) for row in read), tuple(int(c) for c in np.flatnonzero(undefined[rows:-1]))


def interval_of_cells(metric: Metric, cells: Cells, low: Array, high: Array) -> Interval | None:
    """Return the interval of a metric from the intervals of its cells (Zou and Donner 2008; Newcombe 1998).

    Sets are treated as independent. Rows of one set share its items: rows that enter with the same sign are treated as
    fully dependent, which makes the interval rather too wide; rows of opposite signs as independent.

    Args:
        metric: the metric.
        cells: without leading dimensions.
        low: `(R, C)` lower ends, NaN where a cell has no interval.
        high: `(R, C)` upper ends.

    Returns:
        The interval; `None` if a cell that changes the metric has no interval.
    """
    centre = float(compute(metric, cells))
    below = above = 0.0
    for column in range(cells.scores.shape[1]):
        slopes = _slopes(metric, cells, column)
        moved = slopes != 0
        # Distances from the score to the lower and to the upper end.
        down = cells.scores[:, column] - low[:, column]
        up = high[:, column] - cells.scores[:, column]
        if np.isnan((down + up)[moved]).any():
            return None
        for sign in (1, -1):
            part = moved & (np.sign(slopes) == sign)
            size = np.abs(slopes[part])
            falls, rises = (down, up) if sign > 0 else (up, down)
            below += float(size @ falls[part]) ** 2
            above += float(size @ rises[part]) ** 2
    return Interval(centre - math.sqrt(below), centre + math.sqrt(above))


def _slopes(metric: Metric, cells: Cells, column: int) -> Array:
    """Return `(R,)`: how much the metric changes with the score of one set at each row; 0 if it does not read it."""
    rows = len(cells.scores)
    untied = cells.scores - _TIE_BREAK * np.arange(rows)[:, None]
    steps = np.zeros((rows, *cells.scores.shape))
    steps[np.arange(rows), np.arange(rows), column] = _STEP
    ends = compute(metric, cells.with_scores(untied + np.stack([steps, -steps])))
    slopes = (ends[0] - ends[1]) / (2 * _STEP)
    # Rounding leaves about 1e-10 where the slope is 0.
    return np.where(np.isnan(slopes) | (np.abs(slopes) < 1e-9), 0.0, slopes)
