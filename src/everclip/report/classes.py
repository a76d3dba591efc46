"""The section on single classes: how well each is recognised, and what is taken for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap

from everclip.evaluation.confusions import ClassCount, Confusions, joined, read_confusions
from everclip.evaluation.statistics import wilson
from everclip.report import formats
from everclip.report.canvas import TEXT, Picture, blank, dress, finish, plain
from everclip.report.runs import Run

DRAWN = 40
"""Classes that a confusion picture can still show."""

LISTED = 60
"""Rows of the table; of more classes the worst are shown."""

PAIRS = 15

_HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#8fb8f0"])


def parts(run: Run) -> list[dict[str, Any]]:
    """Return a table, the most frequent confusions and a picture per group of classes at the last row.

    Old and new stand in one table where they had the same answers on offer, else each set has its own.
    """
    if run.last < 0:
        return []
    now, start = read_confusions(run.folder, run.last), read_confusions(run.folder, 0)
    old_sets = [now[column.name] for column in run.columns("known") if column.name in now]
    known = {one.key for old in old_sets for one in old.classes if one.n}
    found = []
    for index, (title, names) in enumerate(_groups(run, now)):
        mine = joined([now[name] for name in names])
        first = (
            joined([start[name] for name in names]) if run.last and all(n in start for n in names) else None
        )
        if first is not None and first.answers != mine.answers:
            first = None  # among fewer answers: not of one kind
        never = [c.group for c in run.results.columns if c.name in names] == ["retention"]
        found.append(
            {
                "title": title,
                "note": _note(run, mine),
                "rows": _rows(run, mine, first, None if never else known),
                "left": max(0, sum(c.n > 0 for c in mine.classes) - LISTED),
                "compared": first is not None,
                "pairs": _pairs(mine),
                "whole": mine.whole,
                "picture": _picture(run, mine, title, index),
                "width": min(66, 12 + 1.8 * len(mine.classes)),
            }
        )
    return found


def _groups(run: Run, now: dict[str, Confusions]) -> list[tuple[str, list[str]]]:
    """Return what stands in one table: old and new if their answers are the same, then the other sets."""
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


def _note(run: Run, found: Confusions) -> str:
    row = run.label(run.results.rows[run.last])
    return f"Row {row}, protocol {found.protocol}: {found.answers:,} classes were on offer. Worst first."


def _belongs(run: Run, one: ClassCount, known: set[str] | None) -> str:
    """Say whether a class is old or new; `known` are the classes known before, `None` for a set never trained on."""
    if known is None:
        return "never trained on"
    if not one.tasks:
        return "old"
    names = {task.index: task.name for task in run.results.tasks}
    listed = ", ".join(names.get(task, f"task {task + 1}") for task in one.tasks)
    return f"old, again in {listed}" if one.key in known else f"new ({listed})"


def _rows(
    run: Run, found: Confusions, start: Confusions | None, known: set[str] | None
) -> list[dict[str, str]]:
    before = {c.key: c.right / c.n for c in start.classes if c.n} if start is not None else {}
    measured = sorted((c for c in found.classes if c.n), key=lambda c: (c.right / c.n, -c.n, c.name))
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


def _pairs(found: Confusions) -> list[dict[str, str]]:
    return [
        {
            "truth": found.classes[truth].name,
            "answer": found.classes[answer].name,
            "count": f"{count:,}",
            "of": f"{found.classes[truth].n:,}",
        }
        for truth, answer, count in found.wrong[:PAIRS]
    ]


def _picture(run: Run, found: Confusions, title: str, index: int) -> Picture | None:
    """Draw the confusion matrix, old classes first, then by task; of many classes it could not be read."""
    order = _order(found.classes)
    if not 2 <= len(order) <= DRAWN or not found.whole:
        return None
    place = {i: at for at, i in enumerate(order)}
    counts = [[0] * len(order) for _ in order]
    for i in order:
        counts[place[i]][place[i]] = found.classes[i].right
    for truth, answer, count in found.wrong:
        counts[place[truth]][place[answer]] = count
    totals = [found.classes[i].n for i in order]
    grid = [[c / n if n else math.nan for c in row] for row, n in zip(counts, totals, strict=True)]
    side = max(2.4, 0.3 * len(order))
    figure = blank(side + 1.9, side + 1.3)
    axes = figure.add_subplot()
    axes.imshow(grid, cmap=_HEAT, vmin=0, vmax=1, aspect="equal")
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", color=TEXT, fontsize=8)
    dress(axes, grid="")
    names = [plain(found.classes[i].name, 18) for i in order]
    axes.set_xticks(range(len(order)), names, rotation=45, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(order)), names)
    axes.set_ylabel("right answer")
    old = sum(not found.classes[i].tasks for i in order)
    if 0 < old < len(order):
        for draw in (axes.axhline, axes.axvline):
            draw(old - 0.5, color=TEXT, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.spines[:].set_visible(False)
    name = "confusion" if index == 0 else f"confusion-{index + 1}"
    said = "; ".join(f"{p['truth']} as {p['answer']} {p['count']} of {p['of']}" for p in _pairs(found)[:5])
    return finish(
        figure, name, f"{title}: pictures by right answer (rows) and answer (columns). {said or 'No error'}."
    )


def _order(classes: Sequence[ClassCount]) -> list[int]:
    return sorted(range(len(classes)), key=lambda i: (classes[i].tasks[:1], classes[i].name, classes[i].key))
