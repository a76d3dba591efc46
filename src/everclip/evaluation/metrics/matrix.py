"""Metrics of the score matrix: the scores of the task sets after every task.

A function takes the `Cells` of the task sets and returns `(...)`. NaN means "no such cell" and propagates. A metric
that pairs row `i` with task `i` needs the matrix: as many rows as tasks. A run that stopped early, or that has one row
for all tasks (`joint`), only has `last`.

Sources: Lopez-Paz and Ranzato, GEM (arXiv 1706.08840); Chaudhry et al. (arXiv 1801.10112); Zheng et al., ZSCL
(arXiv 2303.06628) for Transfer / Average / Last; Garg et al., TiC-CLIP (arXiv 2310.16226); Yang et al., CLL-CLIP
(arXiv 2401.17186).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from everclip.evaluation.cells import Array, Cells, mean
from everclip.metrics import Need, metric

_SQUARE: tuple[Need, ...] = ("matrix",)
_PAIRS: tuple[Need, ...] = ("matrix", "two tasks")
_share = partial(metric, kind="stream", interval="bootstrap")
_points = partial(metric, kind="stream", interval="bootstrap", unit="points", needs=_PAIRS)


def _mean_of(parts: Sequence[Array]) -> Array:
    return mean(np.stack(parts, axis=-1))


def _diagonal(table: Array) -> Array:
    return np.diagonal(table, axis1=-2, axis2=-1)


@_share(
    "last",
    label="Last",
    meaning="Mean score over the tasks at the end.",
    formula="MTIL Last: mean_j R[T,j]",
    needs=("rows",),
)
def last(cells: Cells) -> Array:
    """Return the mean of the last row, for any shape of the matrix."""
    return mean(cells.last)


@_share(
    "average",
    label="Average",
    meaning="Mean of all cells, including tasks that are not learned yet.",
    formula="MTIL Average: mean_ij R[i,j]",
    needs=_SQUARE,
    shown=80,
)
def average(cells: Cells) -> Array:
    """Return the mean of all `T x T` cells."""
    return mean(cells.after, axes=2)


@_share(
    "transfer",
    label="Transfer",
    meaning="Score on tasks before they are learned (a score, not a difference).",
    formula="MTIL Transfer: mean_{j>1} mean_{i<j} R[i,j]",
    needs=_PAIRS,
    shown=70,
)
def transfer(cells: Cells) -> Array:
    """Average the cells above the diagonal per task, then over tasks; the first task has none."""
    table = cells.after
    return _mean_of([mean(table[..., :j, j]) for j in range(1, table.shape[-1])])


@_share(
    "average_seen",
    label="Average seen",
    meaning="Mean over the rows of the mean score on the tasks learned so far.",
    formula="average incremental accuracy: mean_i mean_{j<=i} R[i,j]",
    needs=_SQUARE,
)
def average_seen(cells: Cells) -> Array:
    """Average the cells on and below the diagonal per row, then over rows."""
    table = cells.after
    return _mean_of([mean(table[..., i, : i + 1]) for i in range(table.shape[-2])])


@_share(
    "seen_average",
    label="Seen average",
    meaning="Mean over the tasks of each task's mean score since it was learned.",
    formula="SeenAverage of CoLeCLIP's tool: mean_j mean_{i>=j} R[i,j]",
    needs=_SQUARE,
)
def seen_average(cells: Cells) -> Array:
    """Average the cells on and below the diagonal per task: every task weighs the same (`average_seen`: every row)."""
    table = cells.after
    return _mean_of([mean(table[..., j:, j]) for j in range(table.shape[-1])])


@_share(
    "aa",
    label="AA",
    meaning="Mean score over the tasks learned, at the end.",
    formula="CLL AA: mean_{j<=T} R[T,j]",
    needs=_SQUARE,
)
def aa(cells: Cells) -> Array:
    """Return the mean of the last row of a complete matrix; over `i` rows and tasks it is CLL-CLIP's `AA_i`."""
    return mean(cells.last)


@_points(
    "forgetting",
    label="Forgetting",
    meaning="How far earlier tasks are below their best earlier score at the end.",
    formula="Chaudhry F: mean_{j<T} (max_{i<T} R[i,j] − R[T,j])",
    higher_is_better=False,
    shown=110,
)
def forgetting(cells: Cells) -> Array:
    """Return the forgetting of Chaudhry et al., eq. 3.

    The maximum is over all earlier rows, including those before task `j` was learned: a loss of zero-shot ability
    counts as forgetting. If tasks are not scored before they are learned, use `forgetting_since_learned`.
    """
    table = cells.after[..., :-1]
    return mean(table[..., :-1, :].max(axis=-2) - table[..., -1, :])


@_points(
    "forgetting_since_learned",
    label="Forgetting since learned",
    meaning="Like forgetting, but with the best score since the task was learned.",
    formula="mean_{j<T} (max_{j<=i<T} R[i,j] − R[T,j])",
    higher_is_better=False,
)
def forgetting_since_learned(cells: Cells) -> Array:
    """Return the forgetting of CLL-CLIP. Its tables hold zeros above the diagonal, which this metric does not read."""
    table = cells.after
    tasks = range(table.shape[-1] - 1)
    return _mean_of([table[..., j:-1, j].max(axis=-1) - table[..., -1, j] for j in tasks])


@_points(
    "forgetting_first",
    label="Forgetting of the first",
    meaning="How far the first task is below its best earlier score at the end.",
    formula="CLL F_en: max_{i<T} R[i,1] − R[T,1]",
    higher_is_better=False,
)
def forgetting_first(cells: Cells) -> Array:
    """Return the forgetting of the first task (of the source language, if that is learned first)."""
    first = cells.after[..., 0]
    lost: Array = first[..., :-1].max(axis=-1) - first[..., -1]
    return lost


@_points(
    "backward_transfer",
    label="Backward transfer",
    meaning="Mean change of tasks after they were learned; negative means forgetting.",
    formula="GEM BWT: mean_{j<T} (R[T,j] − R[j,j])",
)
def backward_transfer(cells: Cells) -> Array:
    """Return the mean of the last row minus the diagonal."""
    return mean(cells.last[..., :-1] - _diagonal(cells.after)[..., :-1])


@_points(
    "forward_transfer",
    label="Forward transfer",
    meaning="Mean change of tasks from row 0 to the row before they were learned.",
    formula="GEM FWT: mean_{j>1} (R[j−1,j] − R0[j])",
)
def forward_transfer(cells: Cells) -> Array:
    """Return the mean of the cells just above the diagonal minus row 0. In GEM, row 0 has random weights."""
    return mean(_diagonal(cells.after[..., :-1, 1:]) - cells.before[..., 1:])


@_share(
    "learning_accuracy",
    label="Learning accuracy",
    meaning="Mean score of the tasks directly after each was learned.",
    formula="mean_j R[j,j]",
    needs=_SQUARE,
)
def learning_accuracy(cells: Cells) -> Array:
    """Return the mean of the diagonal."""
    return mean(_diagonal(cells.after))


@_points(
    "zero_shot_degradation",
    label="Zero-shot degradation",
    meaning="How far a task is below its best zero-shot score just before it is learned.",
    formula="ZSD: mean_{j>1} (max(R0[j], R[1..j−1,j]) − R[j−1,j])",
    higher_is_better=False,
)
def zero_shot_degradation(cells: Cells) -> Array:
    """Return a value of at least 0. The metric is from the survey of continual learning of vision-language models."""
    rows = (
        cells.scores
    )  # row 0 is before training, so row j is the last one before task j (from 0) is learned
    tasks = range(1, rows.shape[-1])
    return _mean_of([rows[..., : j + 1, j].max(axis=-1) - rows[..., j, j] for j in tasks])


@_points(
    "zero_shot_drop_mean",
    label="Mean zero-shot drop",
    meaning="Forward transfer with the opposite sign.",
    formula="mean_{j>1} (R0[j] − R[j−1,j])",
    higher_is_better=False,
)
def zero_shot_drop_mean(cells: Cells) -> Array:
    """Return the negated `forward_transfer`."""
    return 0.0 - forward_transfer(cells)


_share(
    "tic_in_domain",
    label="TiC in-domain",
    meaning="Mean of the diagonal: the score of each task when it was learned.",
    formula="TiC ID: mean_j R[j,j]",
    needs=_SQUARE,
)(learning_accuracy)


@_share(
    "tic_backward",
    label="TiC backward",
    meaning="Score on tasks learned earlier (a score, not a difference).",
    formula="TiC BT: mean_{i>j} R[i,j]",
    needs=_PAIRS,
)
def tic_backward(cells: Cells) -> Array:
    """Return the mean of all cells below the diagonal: an absolute score, not GEM's BWT."""
    rows, columns = np.tril_indices(cells.after.shape[-1], -1)
    return mean(cells.after[..., rows, columns])


@_share(
    "tic_forward",
    label="TiC forward",
    meaning="Score on tasks not learned yet (a score, not a difference).",
    formula="TiC FT: mean_{i<j} R[i,j]",
    needs=_PAIRS,
)
def tic_forward(cells: Cells) -> Array:
    """Return the mean of all cells above the diagonal: an absolute score, not GEM's FWT."""
    rows, columns = np.triu_indices(cells.after.shape[-1], 1)
    return mean(cells.after[..., rows, columns])


@_points(
    "backward_transfer_libcontinual",
    label="BWT as in LibContinual",
    meaning="Leaves out pairs but divides by the number of all pairs; only explains published numbers.",
    formula="Σ_{i>=3} Σ_{j<=i−2} (R[i,j] − R[j,j]) / (T(T−1)/2)",
)
def backward_transfer_libcontinual(cells: Cells) -> Array:
    """Leave out the pairs `j = i - 1`, as LibContinual does. Do not use it. Undefined with fewer than three tasks."""
    table, tasks = cells.after, cells.after.shape[-1]
    rows, columns = np.tril_indices(tasks, -2)
    pairs = mean(table[..., rows, columns] - table[..., columns, columns])
    return np.asarray(pairs * len(rows) / (tasks * (tasks - 1) / 2))
