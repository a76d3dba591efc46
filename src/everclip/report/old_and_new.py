"""The section on old and new together: a table over the rows, and its figure."""

from __future__ import annotations

from typing import Any

from everclip.report import formats
from everclip.report.canvas import MARKERS, TEXT, Drawing, blank, finish, series, style_axes
from everclip.report.estimates import Change, Estimate, change_since_start, estimate, metric_cells
from everclip.report.runs import Run

PARTS: tuple[tuple[str, str], ...] = (
    ("everything_old", "old"),
    ("everything_new", "new"),
    ("everything", "everything"),
)


def _parts(run: Run) -> tuple[tuple[str, str], ...]:
    """Return the parts to show: only everything if the benchmark has no known set."""
    together = run.together
    return PARTS if not isinstance(together, str) and together.old else PARTS[-1:]


def _values(run: Run, key: str) -> list[Estimate | None]:
    return [estimate(run, metric_cells(run, key, row), draws=2000) for row in range(len(run.results.rows))]


def table(run: Run) -> dict[str, Any] | None:
    """Return headings, rows of cells and the change since row 0; `None` if old and new are not scored together."""
    if isinstance(run.together, str) or run.last < 0:
        return None
    shown = [(key, name, _values(run, key)) for key, name in _parts(run)]
    shown = [(key, name, values) for key, name, values in shown if any(v is not None for v in values)]
    if not any(key == "everything" for key, *_ in shown):
        return None
    rows = [
        {
            "label": run.label(row),
            "cells": [_cell(values[index]) for *_, values in shown],
        }
        for index, row in enumerate(run.results.rows)
    ]
    changes = [_change(change_since_start(run, key)) for key, *_ in shown] if run.last > 0 else []
    return {
        "title": "Old and new together" if len(shown) > 1 else "All tasks together",
        "heads": [name for _, name, _ in shown],
        "rows": rows,
        "changes": changes if any(change["value"] for change in changes) else [],
        "note": _note(run),
    }


def _change(change: Change | None) -> dict[str, str]:
    if change is None:
        return {"value": "", "range": ""}
    if change.nothing:
        return {"value": "no change", "range": ""}
    return {"value": formats.points(change.value), "range": "" if change.resolved else "not resolved"}


def _cell(value: Estimate | None) -> dict[str, str]:
    if value is None:
        return {"value": "", "range": ""}
    return {"value": formats.plain_percent(value.value), "range": formats.span(value.low, value.high)}


def _note(run: Run) -> str:
    together = run.together
    assert not isinstance(together, str)  # checked by the caller
    among = "all names learned so far" if together.grows else "all names, old and new"
    if together.new[0].kind == "retrieval":
        among = among.replace("names", "captions and images")
    old = formats.listed([column.name for column in together.old])
    tasks = "task" if len(together.new) == 1 else f"{len(together.new)} tasks"
    parts = (
        f"Old is what was known before the stream ({old}); new is the test data of the {tasks}."
        if old
        else f"Everything is the test data of the {tasks}, learned or not; the benchmark has no known set."
    )
    return (
        f"{together.metric} in percent, protocol {together.protocol}. Every test image counts once, and the method "
        f"chooses among {among}. {parts}"
    )


def figure(run: Run) -> Drawing | None:
    """Draw old, new and everything over the tasks learned."""
    if isinstance(run.together, str) or run.last < 1:
        return None
    lines = {name: _values(run, key) for key, name in _parts(run)}
    if all(value is None for values in lines.values() for value in values):
        return None
    drawn = blank(4.6, 2.6)
    axes = drawn.add_subplot()
    learned = [run.learned_count(row) for row in range(len(run.results.rows))]
    for index, (name, values) in enumerate(lines.items()):
        points = [(x, 100 * v.value) for x, v in zip(learned, values, strict=True) if v is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=series(index),
                marker=MARKERS[index],
                markersize=5,
                linewidth=2.4 if name == "everything" else 1.5,
                linestyle="-" if name == "everything" else "--",
                label=name,
            )
    style_axes(axes)
    axes.set_ylim(bottom=0)
    tasks = len(run.results.tasks)
    axes.set_xticks(range(0, tasks + 1, max(1, tasks // 8)))
    axes.set_xlabel("tasks learned")
    axes.legend(frameon=False, fontsize=9, labelcolor=TEXT, loc="best")
    said = "; ".join(
        f"{name} {', '.join('no cell' if v is None else formats.plain_percent(v.value) for v in values)}"
        for name, values in lines.items()
    )
    return finish(drawn, "together", f"Old, new and everything in percent over the rows: {said}.")
