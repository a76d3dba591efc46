"""Metrics of groups of sets: before training, at the last row, and the difference.

The groups are the tasks (`new`), the sets known before the stream (`known`), the retention suite, which is never
trained on, and old and new sets scored together (`everything`, with its parts `old` and `new`; see
`everclip.evaluation.old_and_new`). A function takes the `Cells` of the group and returns `(...)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np

from everclip.evaluation.cells import Array, Cells, in_order, mean
from everclip.metrics import Need, Sets, metric

_stream = partial(metric, kind="stream")
_suite = partial(_stream, sets="retention", interval="bootstrap", needs=("retention",))
When = Literal["before", "last", "change"]


def weighted_mean(values: Array, weights: Array) -> Array:
    """Return `sum_j w_j v_j / sum_j w_j` over the last axis, summed in the order of the sets; NaN without weights."""
    total = weights.sum()
    return in_order(values * weights) / total if total else np.full(values.shape[:-1], math.nan)


def level(cells: Cells, row: int) -> Array:
    """Return the mean over the sets at a row, with equal weights."""
    return weighted_mean(cells.scores[..., row, :], np.ones(cells.scores.shape[-1]))


def pooled(cells: Cells, row: int) -> Array:
    """Return the mean over all items of the sets that count at a row."""
    counted = cells.learned[row]
    return weighted_mean(cells.scores[..., row, counted], cells.samples[row, counted])


def stage(cells: Cells, row: int) -> Array:
    """Return the score over all samples of the tasks learned by a row: `sum_j n_j R[i, j] / sum_j n_j`.

    For accuracy with one column per group of classes, this is the accuracy of class-incremental tables: every image
    counts once, so a larger group weighs more.
    """
    columns = cells.learned[row]
    n = cells.samples[row, columns]
    total = n.sum()
    return mean(cells.scores[..., row, columns] * n / total * len(n) if total else np.zeros(0))


@_suite(
    "suite_degradation",
    label="Suite degradation",
    meaning="Loss of the mean score on the retention suite.",
    formula="Z0 − Z_T",
    unit="points",
    higher_is_better=False,
)
def suite_degradation(cells: Cells) -> Array:
    """Return the mean before training minus the mean at the last row."""
    return mean(cells.before) - mean(cells.last)


@_suite(
    "suite_relative",
    label="Suite, relative",
    meaning="Share of the mean score on the retention suite that is left; 1 means no loss.",
    formula="Z_T / Z0",
    unit="ratio",
)
def suite_relative(cells: Cells) -> Array:
    """Return the mean at the last row over the mean before training; undefined if the latter is 0."""
    start, now = mean(cells.before), mean(cells.last)
    return now / np.where(start == 0, math.nan, start)


@_stream(
    "stage_average",
    label="Avg, by images",
    meaning="Mean over the rows of the score over all test images of the tasks learned so far.",
    formula="CIL Avg: mean_i sum_{j<=i} n_j R[i,j] / sum_{j<=i} n_j",
    needs=("rows", "tasks"),
    shown=100,
)
def stage_average(cells: Cells) -> Array:
    """Return `mean_i A_i` of class-incremental tables (online: `A_avg`), each over all seen classes."""
    return mean(np.stack([stage(cells, row) for row in range(1, cells.scores.shape[-2])], axis=-1))


@_stream(
    "stage_last",
    label="Last, by images",
    meaning="Score over all test images of the tasks learned, at the end.",
    formula="CIL Last: sum_j n_j R[T,j] / sum_j n_j",
    needs=("rows", "tasks"),
    shown=90,
)
def stage_last(cells: Cells) -> Array:
    """Return `A_T` of class-incremental tables (online: `A_last`)."""
    return stage(cells, -1)


@_suite(
    "worst_retention_drop",
    label="Worst retention drop",
    meaning="Drop of the retention set that lost the most.",
    formula="max_k (Z0[k] − Z_T[k])",
    unit="points",
    higher_is_better=False,
)
def worst_retention_drop(cells: Cells) -> Array:
    """Return the largest drop; negative if every set gained."""
    return np.asarray((cells.before - cells.last).max(axis=-1))


def _function(of: Callable[[Cells, int], Array], when: When) -> Callable[[Cells], Array]:
    if when == "change":
        return lambda cells: of(cells, -1) - of(cells, 0)
    row = 0 if when == "before" else -1
    return lambda cells: of(cells, row)


def _group(
    name: str,
    label: str,
    meanings: tuple[str, str, str],
    formulas: tuple[str, str, str],
    sets: Sets,
    needs: tuple[Need, ...],
    shown: int,
    of: Callable[[Cells, int], Array] = level,
) -> None:
    """Register the metrics of a group: before, last and change."""
    whens: tuple[When, ...] = ("before", "last", "change")
    together: tuple[Need, ...] = ("fixed answers",) if of is pooled else ()
    for when, meaning, formula in zip(whens, meanings, formulas, strict=True):
        _stream(
            f"{name}_{when}",
            label=f"{label}, {when}",
            meaning=meaning,
            formula=formula,
            unit="points" if when == "change" else "percent",
            interval="bootstrap",
            sets=sets,
            needs=needs if when == "last" else (*needs, *together),
            shown=shown if when == "last" else None,
        )(_function(of, when))


_group(
    "known",
    "Known",
    (
        "Mean score on the known sets at row 0.",
        "Mean score on the known sets at the end.",
        "Last minus before; negative means forgetting.",
    ),
    ("K0", "K_T", "K_T − K0"),
    "known",
    ("known",),
    shown=20,
)
_group(
    "retention",
    "Retention",
    (
        "Mean score on the retention suite, which is never trained on, at row 0.",
        "Mean score on the retention suite, which is never trained on, at the end.",
        "Last minus before; negative means lost zero-shot ability.",
    ),
    ("Z0", "Z_T", "Z_T − Z0"),
    "retention",
    ("retention",),
    shown=60,
)
_group(
    "new",
    "New",
    (
        "Mean score on the tasks at row 0: what the start model can do already.",
        "Mean score on the tasks at the end (MTIL Last).",
        "Last minus before: what the model learned.",
    ),
    ("mean_j R0[j]", "mean_j R[T,j]", "mean_j (R[T,j] − R0[j])"),
    "task",
    ("tasks",),
    shown=10,
)
for _part, _place in (("old", 50), ("new", 40)):
    _group(
        f"everything_{_part}",
        "Known, among all" if _part == "old" else "New, among all",
        (
            f"Score on the {_part} part of everything at row 0.",
            f"Score on the {_part} part of everything at the end.",
            f"Score on the {_part} part of everything: last minus before.",
        ),
        (
            f"as everything_before, over the {_part} sets",
            f"as everything_last, over the {_part} sets",
            f"as everything_change, over the {_part} sets",
        ),
        "old" if _part == "old" else "new",
        ("together", "known") if _part == "old" else ("together",),
        _place,
        pooled,
    )
_group(
    "everything",
    "Everything",
    (
        "Score on old and new test images together, among the names of all sets, at row 0.",
        "Score on old and new test images together, among the names of all sets, at the end.",
        "Last minus before: whether the update was worth it overall.",
    ),
    (
        "sum_j n_j R0[j] / sum_j n_j",
        "sum_j n_j R[T,j] / sum_j n_j",
        "everything_last − everything_before",
    ),
    "everything",
    ("together",),
    30,
    pooled,
)
