"""The section on evaluation over time: the three averages of TiC-CLIP per kind of dated set, the static suite beside.

The averages are scores, not differences (arXiv 2310.16226): of the diagonal, of the cells below and of those above.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everclip.evaluation.results import Column
from everclip.metrics import find
from everclip.report import formats
from everclip.report.estimates import (
    Estimate,
    at_last_row,
    cells_of_columns,
    change_since_start,
    estimate,
)
from everclip.report.runs import Run

AVERAGES = {
    "tic_in_domain": "in-domain",
    "tic_backward": "backward",
    "tic_forward": "forward",
}
"""Metric -> heading."""

NOTE = (
    "In-domain: the mean score of the dated sets, each after its own time was learned. Backward: sets of earlier "
    "times. Forward: sets of times that were not learned yet. All three are averages of cells of the score matrix, "
    "not differences."
)

UNDATED = ("classes", "languages", "online", "single")
"""Kinds of streams whose tasks follow no time, also where their data have dates."""


def dated_columns(run: Run) -> list[tuple[Column, ...]]:
    """Return the groups of columns that hold one dated set per task: those of the tasks, then other kinds of them."""
    tasks = [task.index for task in run.results.tasks]
    parts = [c for c in run.results.columns if c.group == "part"]
    groups = [tuple(run.columns("task"))]
    for kind in dict.fromkeys(c.kind for c in parts):
        of_kind = sorted(
            (c for c in parts if c.kind == kind and c.task is not None), key=lambda c: c.task or 0
        )
        groups.append(tuple(of_kind))
    return [group for group in groups if [c.task for c in group] == tasks]


def groups_in_time(run: Run) -> list[tuple[Column, ...]]:
    """Return the groups of dated sets; none if the stream is none in time.

    It is one in time if all tasks have a time, or each task has a further set of another kind, unless its tasks are
    classes or languages.
    """
    scenario = run.config.get("scenario")
    if isinstance(scenario, Mapping) and scenario.get("kind") in UNDATED:
        return []
    groups = dated_columns(run)
    timed = all(task.time is not None for task in run.results.tasks)
    return groups if len(run.results.tasks) > 1 and (timed or len(groups) > 1) else []


def averages(run: Run, columns: tuple[Column, ...]) -> list[Estimate | None]:
    """Return the averages of a group of dated sets, in the order of `AVERAGES`."""
    return [estimate(run, cells_of_columns(run, name, columns), draws=2000) for name in AVERAGES]


def kind_of(run: Run, columns: tuple[Column, ...]) -> str:
    """Return what is measured on a group of sets: `retrieval, mean Recall@1`."""
    metric = run.cell(columns[0])[1]
    entry = find(metric)
    return f"{columns[0].kind}, {entry.label if entry else metric}"


def table(run: Run) -> dict[str, Any] | None:
    """Return headings and rows; `None` if the stream is none in time, or the matrix is not complete."""
    found = [(kind_of(run, group), averages(run, group)) for group in groups_in_time(run)]
    rows = [
        {"label": label, "cells": [_cell(value) for value in values]}
        for label, values in found
        if any(values)
    ]
    if not rows:
        return None
    return {
        "heads": [f"{head}, percent" for head in AVERAGES.values()],
        "rows": rows,
        "note": NOTE,
        "static": _static(run),
    }


def _cell(value: Estimate | None) -> dict[str, str]:
    if value is None:
        return {"value": formats.NOT_DEFINED, "range": ""}
    return {"value": formats.plain_percent(value.value), "range": formats.span(value.low, value.high, 1)}


def _static(run: Run) -> str:
    """Say what the static suite shows; empty without one."""
    value, change = at_last_row(run, "retention", 2000), change_since_start(run, "retention", draws=2000)
    if value is None:
        return ""
    names = formats.listed([column.name for column in run.columns("retention")])
    since = ""
    if change is not None and change.nothing:
        since = ", no change"
    elif change is not None:
        open_ = "" if change.resolved else ", not resolved"
        since = f", {formats.points(change.value)} points since row 0{open_}"
    shown = formats.span(value.low, value.high, 1)
    return f"Static suite ({names}): {formats.percent(value.value)} at the last row ({shown}){since}."
