"""The figures of a comparison: the trade-off of learning and keeping, curves, and final scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from everclip.report.canvas import MARKERS, MUTED, TEXT, Drawing, blank, finish, plain, series, style_axes
from everclip.report.comparison import Comparison, Method, Value, heading, meaning
from everclip.report.formats import percent, plain_percent

SETTLED = ("everything", "new", "known", "retention", "average")


def tradeoff(comparison: Comparison) -> Drawing | None:
    """Draw the score on new sets over the score on known sets; up and to the right is better."""
    placed = [
        (i, m, x, y)
        for i, m in enumerate(comparison.methods)
        if (x := m.values["known"]) is not None and (y := m.values["new"]) is not None
    ]
    if not placed:
        return None
    figure = blank(4.6, 3.6)
    axes = figure.add_subplot()
    for index, method, x, y in placed:
        axes.errorbar(
            [100 * x.value],
            [100 * y.value],
            xerr=_reach(x),
            yerr=_reach(y),
            color=series(index),
            marker=MARKERS[index % len(MARKERS)],
            markersize=8,
            linestyle="none",
            elinewidth=1.4,
            label=plain(method.label, 34),
        )
    for start in comparison.before:
        if (x := start.values["known"]) is not None and (y := start.values["new"]) is not None:
            axes.plot(
                [100 * x.value],
                [100 * y.value],
                color=MUTED,
                marker="o",
                markerfacecolor="none",
                markersize=8,
                linestyle="none",
                label=plain(start.label, 34),
            )
    style_axes(axes)
    axes.grid(axis="x", color=axes.get_ygridlines()[0].get_color(), linewidth=0.6)
    axes.set_xlabel("known before, percent at the end")
    axes.set_ylabel("new, percent at the end")
    axes.margins(0.12)
    _legend(figure, 2)
    said = "; ".join(f"{m.label}: known {percent(x.value)}, new {percent(y.value)}" for _, m, x, y in placed)
    return finish(figure, "tradeoff", f"Score on new sets over score on known sets. {said}.")


def curves(comparison: Comparison) -> list[tuple[str, Drawing]]:
    """Draw known, new and retention over the tasks learned, one line per method."""
    found: list[tuple[str, Drawing]] = []
    for key in ("everything", "new", "known", "retention"):
        methods = [(i, m) for i, m in enumerate(comparison.methods) if m.curves.get(key)]
        if not methods:
            continue
        figure = blank(4.2, 3.0)
        axes = figure.add_subplot()
        for index, method in methods:
            _line(axes, method, key, index)
        style_axes(axes)
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(len(comparison.tasks) + 1))
        axes.set_xlabel("tasks learned")
        axes.set_title(f"{heading(key)}, percent", fontsize=10.5, loc="left", color=TEXT)
        _legend(figure, 2)
        said = "; ".join(
            f"{m.label}: {', '.join(plain_percent(p.value.value) for p in m.curves[key])}" for _, m in methods
        )
        found.append(
            (key, finish(figure, f"curve-{key}", f"{heading(key)} in percent over the tasks. {said}."))
        )
    return found


def _line(axes: Axes, method: Method, key: str, index: int) -> None:
    points = method.curves[key]
    # Dotted if all tasks were learned at once: nothing was measured in between.
    leaps = any(b.tasks - a.tasks > 1 for a, b in pairwise(points))
    axes.plot(
        [p.tasks for p in points],
        [100 * p.value.value for p in points],
        color=series(index),
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        linewidth=1.7,
        label=plain(method.label, 34),
        linestyle=":" if leaps else ("-", "--", "-.")[index // len(MARKERS) % 3],
    )
    band = [(p.tasks, v.low, v.high) for p in points if (v := p.value).low is not None and v.high is not None]
    axes.fill_between(
        [b[0] for b in band],
        [100 * b[1] for b in band],
        [100 * b[2] for b in band],
        color=series(index),
        alpha=0.13,
        linewidth=0,
    )


def bars(comparison: Comparison) -> Drawing:
    """Draw the values of the main table as bars with intervals, one panel per metric."""
    methods = comparison.methods
    shown = [key for key in SETTLED if any(m.values[key] is not None for m in methods)]
    figure = blank(2.0 + 1.75 * max(len(shown), 1), 0.9 + 0.36 * len(methods))
    for place, key in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), place + 1)
        for row, method in enumerate(methods):
            _bar(axes, row, method.values[key])
        style_axes(axes, grid="x")
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_yticks(
            range(len(methods)), [plain(m.label) for m in methods] if place == 0 else [""] * len(methods)
        )
        axes.set_title(heading(key), fontsize=10.5, loc="left", color=TEXT)
    said = "; ".join(f"{meaning(key)}: {_listed(methods, key)}" for key in shown)
    return finish(figure, "bars", f"Final scores in percent. {said}.")


def _bar(axes: Axes, row: int, value: Value | None) -> None:
    if value is None:
        axes.text(0, row, " not defined", va="center", fontsize=8, color=MUTED)
        return
    axes.barh([row], [100 * value.value], color=series(row), height=0.6)
    reach = _reach(value)
    if reach is not None:
        axes.errorbar(
            [100 * value.value], [row], xerr=reach, color=TEXT, linestyle="none", elinewidth=1.2, capsize=2
        )


def _listed(methods: Sequence[Method], key: str) -> str:
    return ", ".join(f"{m.label} {percent(v.value)}" for m in methods if (v := m.values[key]) is not None)


def _reach(value: Value) -> list[list[float]] | None:
    """Return the distances to the ends of the interval, as matplotlib's error bars take them."""
    if value.low is None or value.high is None:
        return None
    return [[100 * max(value.value - value.low, 0)], [100 * max(value.high - value.value, 0)]]


def _legend(figure: Figure, columns: int) -> None:
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=TEXT,
    )
