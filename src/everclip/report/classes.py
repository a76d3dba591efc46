"""The section on single classes: how well each is recognised, and which classes are confused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap

from everclip.evaluation.confusions import ClassCount, Confusions, merge_confusions, read_confusions
from everclip.evaluation.statistics import wilson
from everclip.report import formats
from everclip.report.canvas import TEXT, Drawing, blank, finish, plain, style_axes
from everclip.report.runs import Run

DRAWN = 40
"""Most classes in the figure of a confusion matrix."""

LISTED = 60
"""Most rows of the table; if there are more classes, the worst are shown."""

PAIRS = 15
"""Most confusions in the table."""

_HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#8fb8f0"])


def parts(run: Run) -> list[dict[str, Any]]:
    """Return, per group of classes, a table, the most frequent confusions and a figure at the last row.

    Old and new classes share a table if they were scored in the same label space; else each set has its own.
    """
    if run.last < 0:
        return []
    now, start = read_confusions(run.folder, run.last), read_confusions(run.folder, 0)
    old_sets = [now[column.name] for column in run.columns("known") if column.name in now]
    known = {one.key for old in old_sets for one in old.classes if one.n}
    sections = []
    for index, (title, names) in enumerate(_groups(run, now)):
        last = merge_confusions([now[name] for name in names])
        comparable = run.last and all(name in start for name in names)
        first = merge_confusions([start[name] for name in names]) if comparable else None
        if first is not None and first.answers != last.answers:
            first = None  # row 0 had fewer classes to choose from
        retention = [c.group for c in run.results.columns if c.name in names] == ["retention"]
        sections.append(
            {
                "title": title,
                "note": _note(run, last),
                "rows": _rows(run, last, first, None if retention else known),
                "left": max(0, sum(c.n > 0 for c in last.classes) - LISTED),
                "compared": first is not None,
                "pairs": _pairs(last),
                "whole": last.whole,
                "figure": _figure(run, last, title, index),
                "width": min(66, 12 + 1.8 * len(last.classes)),
            }
        )
    return sections


def _groups(run: Run, now: dict[str, Confusions]) -> list[tuple[str, list[str]]]:
    """Return (title, names of sets) per table: old and new in one if they share a label space, then the others."""
    whole = [c.name for c in run.columns("everything") if c.name in now]
    parts_of_it = [c.name for c in (*run.columns("known"), *run.columns("task")) if c.name in now]
    shown = run.results.headline["protocol"]
    spaces = {p["name"]: p.get("space") for p in run.results.protocols if not p.get("known_task")}
    rest = [(c.name, [c.name]) for c in run.columns("retention") if c.name in now]
    if whole:
        return [("Old and new together", whole), *rest]
    if len(parts_of_it) > 1 and spaces.get(shown) == "all":
        return [("Old and new together", parts_of_it), *rest]
    return [*((name, [name]) for name in parts_of_it), *rest]


def _note(run: Run, confusions: Confusions) -> str:
    row = run.label(run.results.rows[run.last])
    return f"Row {row}, protocol {confusions.protocol}: {confusions.answers:,} classes to choose from. Worst first."


def _belongs(run: Run, one: ClassCount, known: set[str] | None) -> str:
    """Say whether a class is old or new; `known` holds the classes known before, `None` for a retention set."""
    if known is None:
        return "never trained on"
    if not one.tasks:
        return "old"
    names = {task.index: task.name for task in run.results.tasks}
    listed = ", ".join(names.get(task, f"task {task + 1}") for task in one.tasks)
    return f"old, again in {listed}" if one.key in known else f"new ({listed})"


def _rows(
    run: Run, confusions: Confusions, start: Confusions | None, known: set[str] | None
) -> list[dict[str, str]]:
    before = {c.key: c.right / c.n for c in start.classes if c.n} if start is not None else {}
    measured = sorted((c for c in confusions.classes if c.n), key=lambda c: (c.right / c.n, -c.n, c.name))
    rows = []
    for one in measured[:LISTED]:
        share = one.right / one.n
        interval = wilson(one.right, one.n, run.confidence)
        first = before.get(one.key)
        rows.append(
            {
                "name": one.name,
                "belongs": _belongs(run, one, known),
                "n": f"{one.n:,}",
                "before": "" if first is None else formats.plain_percent(first),
                "now": formats.plain_percent(share),
                "range": formats.span(interval.low, interval.high),
                "change": "" if first is None else formats.points(share - first),
            }
        )
    return rows


def _pairs(confusions: Confusions) -> list[dict[str, str]]:
    return [
        {
            "truth": confusions.classes[truth].name,
            "answer": confusions.classes[answer].name,
            "count": f"{count:,}",
            "of": f"{confusions.classes[truth].n:,}",
        }
        for truth, answer, count in confusions.wrong[:PAIRS]
    ]


def _figure(run: Run, confusions: Confusions, title: str, index: int) -> Drawing | None:
    """Draw the confusion matrix, old classes first, then by task; `None` if there are too many classes to read."""
    order = _order(confusions.classes)
    if not 2 <= len(order) <= DRAWN or not confusions.whole:
        return None
    position = {i: at for at, i in enumerate(order)}
    counts = [[0] * len(order) for _ in order]
    for i in order:
        counts[position[i]][position[i]] = confusions.classes[i].right
    for truth, answer, count in confusions.wrong:
        counts[position[truth]][position[answer]] = count
    totals = [confusions.classes[i].n for i in order]
    grid = [[c / n if n else math.nan for c in row] for row, n in zip(counts, totals, strict=True)]
    side = max(2.4, 0.3 * len(order))
    figure = blank(side + 1.9, side + 1.3)
    axes = figure.add_subplot()
    axes.imshow(grid, cmap=_HEAT, vmin=0, vmax=1, aspect="equal")
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", color=TEXT, fontsize=8)
    style_axes(axes, grid="")
    names = [plain(confusions.classes[i].name, 18) for i in order]
    axes.set_xticks(range(len(order)), names, rotation=45, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(order)), names)
    axes.set_ylabel("right answer")
    old = sum(not confusions.classes[i].tasks for i in order)
    if 0 < old < len(order):
        for draw in (axes.axhline, axes.axvline):
            draw(old - 0.5, color=TEXT, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.spines[:].set_visible(False)
    name = "confusion" if index == 0 else f"confusion-{index + 1}"
    errors = "; ".join(
        f"{p['truth']} as {p['answer']} {p['count']} of {p['of']}" for p in _pairs(confusions)[:5]
    )
    return finish(
        figure,
        name,
        f"{title}: images by right answer (rows) and given answer (columns). {errors or 'No error'}.",
    )


def _order(classes: Sequence[ClassCount]) -> list[int]:
    return sorted(range(len(classes)), key=lambda i: (classes[i].tasks[:1], classes[i].name, classes[i].key))
