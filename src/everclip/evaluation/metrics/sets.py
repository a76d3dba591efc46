"""Metrics of groups of sets: before training, at the last row, and the difference.

The groups are the tasks (`new`), what was known before the stream (`known`), the retention suite, which is never
trained on, and what is scored together (`everything`, with its parts `old` and `new`; see
`everclip.evaluation.together`). A function takes `Cells` of the group and returns `(...)`.
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
    """Return `sum_j w_j v_j / sum_j w_j` over the last axis, in the order of the sets; NaN where no weight is left."""
    total = weights.sum()
    return in_order(values * weights) / total if total else np.full(values.shape[:-1], math.nan)


def level(cells: Cells, row: int) -> Array:
    """Return the mean over the sets at a row, every set alike."""
    return weighted_mean(cells.scores[..., row, :], np.ones(cells.scores.shape[-1]))


def pooled(cells: Cells, row: int) -> Array:
    """Return the mean over all items of the sets that count at a row."""
    counted = cells.learned[row]
    return weighted_mean(cells.scores[..., row, counted], cells.samples[row, counted])


def stage(cells: Cells, row: int) -> Array:
    """Return the score over all samples of what was learned by a row: `sum_j n_j R[i, j] / sum_j n_j`.

    With accuracy and a column per group of classes this is the accuracy of class-incremental tables: every image
    counts once, so that a larger group weighs more.
    """
    columns = cells.learned[row]
    n = cells.samples[row, columns]
    total = n.sum()
    return mean(cells.scores[..., row, columns] * n / total * len(n) if total else np.zeros(0))


@_suite(
    "suite_degradation",
    label="Suite degradation",
    meaning="Loss of mean score over the retention suite.",
    formula="Z0 − Z_T",
    unit="points",
    higher_is_better=False,
)
def suite_degradation(cells: Cells) -> Array:
    """The mean before training minus the mean at the last row."""
    return mean(cells.before) - mean(cells.last)


@_suite(
    "suite_relative",
    label="Suite, relative",
    meaning="What is left of the mean score of the retention suite; 1 is everything.",
    formula="Z_T / Z0",
    unit="ratio",
)
def suite_relative(cells: Cells) -> Array:
    """Undefined where the mean before training is 0."""
    start, now = mean(cells.before), mean(cells.last)
    return now / np.where(start == 0, math.nan, start)


@_stream(
    "stage_average",
    label="Avg, by images",
    meaning="Mean over time of the score over all test images of what was learned by then.",
    formula="CIL Avg: mean_i sum_{j<=i} n_j R[i,j] / sum_{j<=i} n_j",
    needs=("rows", "tasks"),
    shown=100,
)
def stage_average(cells: Cells) -> Array:
    """`mean_i A_i` of class-incremental tables, online `A_avg`: all seen classes in each."""
    return mean(np.stack([stage(cells, row) for row in range(1, cells.scores.shape[-2])], axis=-1))


@_stream(
    "stage_last",
    label="Last, by images",
    meaning="Over all test images of what was learned, at the end.",
    formula="CIL Last: sum_j n_j R[T,j] / sum_j n_j",
    needs=("rows", "tasks"),
    shown=90,
)
def stage_last(cells: Cells) -> Array:
    """`A_T` of class-incremental tables, online `A_last`."""
    return stage(cells, -1)


@_suite(
    "worst_retention_drop",
    label="Worst retention drop",
    meaning="Drop of the retention set that lost most.",
    formula="max_k (Z0[k] − Z_T[k])",
    unit="points",
    higher_is_better=False,
)
def worst_retention_drop(cells: Cells) -> Array:
    """Negative if every set gained."""
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
        "What was known before, at row 0.",
        "What was known before, at the end.",
        "Last minus before; negative is forgetting.",
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
        "Mean over the retention suite, never trained on, at row 0.",
        "Mean over the retention suite, never trained on, at the end.",
        "Last minus before; negative is zero-shot ability lost.",
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
        "Mean over the tasks at row 0: what the base could do already.",
        "Mean over the tasks at the end (MTIL Last).",
        "Last minus before: what was learned.",
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
            f"The part of everything that is {_part}, at row 0.",
            f"The part of everything that is {_part}, at the end.",
            f"The part of everything that is {_part}: last minus before.",
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
        "Old and new test images together, among the answers of all sets, at row 0.",
        "Old and new test images together, among the answers of all sets, at the end.",
        "Last minus before: whether the update was worth it.",
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
