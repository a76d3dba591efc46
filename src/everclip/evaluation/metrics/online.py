"""Metrics of a stream that is seen once: the accuracy among the classes seen so far, at any time.

A row is one of those every n samples, the end of a part, or both (`Cells.at`). Every row measures the test images of
the classes seen so far. Sources: i-Blurry (arXiv 2203.15355), SIT (arXiv 2405.15155).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from everclip.evaluation.cells import Array, Cells, mean
from everclip.evaluation.metrics.sets import stage
from everclip.metrics import metric

_online = partial(metric, kind="stream", needs=("seen once", "rows"))


def _mean_of_rows(cells: Cells, kind: str) -> Array:
    rows = [row for row, at in enumerate(cells.at) if kind in at]
    return mean(np.stack([stage(cells, row) for row in rows], axis=-1)) if rows else _undefined(cells)


def _undefined(cells: Cells) -> Array:
    return mean(cells.last[..., :0])


@_online(
    "a_auc",
    label="A_AUC",
    meaning="Mean accuracy over the rows every n samples: the area under the curve over the stream.",
    formula="A_AUC: mean over rows every n samples of A_i",
    shown=61,
)
def a_auc(cells: Cells) -> Array:
    """Return the mean over the rows at equal distances; undefined if the stream has none."""
    return _mean_of_rows(cells, "every")


@_online(
    "a_avg",
    label="A_avg",
    meaning="Mean accuracy over the ends of the parts of the stream.",
    formula="A_avg: mean over ends of parts of A_t",
    shown=62,
)
def a_avg(cells: Cells) -> Array:
    """Return the mean over the rows at ends of parts; two that fall into one batch are one row."""
    return _mean_of_rows(cells, "part")


@_online(
    "a_last",
    label="A_last",
    meaning="Accuracy at the end of the stream, among all of its classes.",
    formula="A_last: A_T",
    shown=63,
)
def a_last(cells: Cells) -> Array:
    """Return the accuracy at the last end of a part."""
    ends = [row for row, at in enumerate(cells.at) if "part" in at]
    return stage(cells, ends[-1]) if ends else _undefined(cells)


@_online(
    "f_last",
    label="F_last",
    meaning="How far the classes that were ever right before the last part are below their best accuracy at the end.",
    formula="F_last: mean_{j: m_j>0} (m_j − a_T(j)), m_j = max_{t<T} a_t(j)",
    unit="points",
    higher_is_better=False,
    shown=64,
)
def f_last(cells: Cells) -> Array:
    """Return the forgetting per class over the ends of parts; classes that were never right are skipped."""
    ends = [row for row, at in enumerate(cells.at) if "part" in at]
    if cells.classes is None or len(ends) < 2:
        return _undefined(cells)
    table = np.nan_to_num(cells.classes[ends], nan=0.0)
    best, last = table[:-1].max(axis=0), table[-1]
    value = mean((best - last)[best > 0])
    # Defined only if the last row is measured; a bootstrap cannot draw the items of single classes.
    return value + 0.0 * mean(cells.last)
