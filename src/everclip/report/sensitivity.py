"""Which cells a metric reads, and how much it moves with each: found by trying, so that no metric has to say it."""

from __future__ import annotations

import math

import numpy as np

from everclip.evaluation.cells import Array, Cells, compute
from everclip.evaluation.statistics import Interval
from everclip.metrics import Metric

_STEP = 2.0**-20
_APART = 2.0**-18
"""How far equal scores of one set are set apart, the earliest highest: one of them alone is its best."""


def read_cells(metric: Metric, cells: Cells) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the rows and the columns of the cells that a metric reads: without them it is undefined.

    A metric of the matrix reads all rows after training began, so that its draws show the whole matrix.
    """
    rows, columns = cells.scores.shape
    tried = np.full((rows + columns + 1, rows, columns), 0.5)
    for row in range(rows):
        tried[row, row] = math.nan
    for column in range(columns):
        tried[rows + column, :, column] = math.nan
    undefined = np.isnan(compute(metric, cells.holding(tried)))
    if undefined[-1]:  # without a missing cell
        return (), ()
    read = np.flatnonzero(undefined[:rows])
    if "matrix" in metric.needs:
        read = np.union1d(read, np.arange(1, rows))
    return tuple(int(row) for row in read), tuple(int(c) for c in np.flatnonzero(undefined[rows:-1]))


def interval_of_cells(metric: Metric, cells: Cells, low: Array, high: Array) -> Interval | None:
    """Return the interval of a metric from the intervals of its cells (Zou and Donner 2008; Newcombe 1998).

    Sets are taken as independent. Rows of one set share its items: what enters with the same sign is taken as fully
    dependent, which errs on the wide side; what is subtracted, as independent.

    Args:
        metric: the metric.
        cells: without leading dimensions.
        low: `(R, C)` lower ends, NaN where a cell has no interval.
        high: `(R, C)` upper ends.

    Returns:
        The interval; `None` as soon as a cell that the metric moves with has none.
    """
    centre = float(compute(metric, cells))
    below = above = 0.0
    for column in range(cells.scores.shape[1]):
        slopes = _slopes(metric, cells, column)
        moved = slopes != 0
        # Distances from the score to its ends, on the side to which the metric falls and on that to which it rises.
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
    """Return `(R,)`: how much the metric moves with the score of one set at each row; 0 where it does not read it."""
    rows = len(cells.scores)
    apart = cells.scores - _APART * np.arange(rows)[:, None]
    steps = np.zeros((rows, *cells.scores.shape))
    steps[np.arange(rows), np.arange(rows), column] = _STEP
    ends = compute(metric, cells.holding(apart + np.stack([steps, -steps])))
    slopes = (ends[0] - ends[1]) / (2 * _STEP)
    # Rounding leaves 1e-10 where there is nothing.
    return np.where(np.isnan(slopes) | (np.abs(slopes) < 1e-9), 0.0, slopes)
