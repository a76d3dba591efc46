"""The figures of one run: score matrix, curves, forgetting, retention, representation, cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from everclip.evaluation.metrics.cost import stages
from everclip.evaluation.results import Column
from everclip.metrics import Metric, metrics
from everclip.report import canvas
from everclip.report.canvas import (
    GRID,
    GROUND,
    MARKERS,
    MUTED,
    SERIES,
    TEXT,
    Drawing,
    blank,
    finish,
    panel,
    plain,
    series,
    style_axes,
)
from everclip.report.estimates import Change
from everclip.report.formats import number, plain_percent, seconds
from everclip.report.runs import Run

_HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#8fb8f0"])


def matrix(run: Run) -> Drawing:
    """Draw the score matrix; the page itself shows it as a table."""
    columns = [*run.columns("known"), *run.columns("task"), *run.columns("retention")]
    rows = run.results.rows
    values = [[(s.value if (s := run.score(i, c)) else None) for c in columns] for i in range(len(rows))]
    known = [value for row in values for value in row if value is not None]
    top = max([*known, 1e-9])
    figure = blank(1.6 + 0.78 * max(len(columns), 1), 1.3 + 0.42 * max(len(rows), 1))
    axes = figure.add_subplot()
    grid = [[math.nan if value is None else value / top for value in row] for row in values]
    if columns and rows:
        axes.imshow(grid, cmap=_HEAT, vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is not None:
                axes.text(j, i, plain_percent(value), ha="center", va="center", color=TEXT, fontsize=10)
    style_axes(axes, grid="")
    axes.set_xticks(range(len(columns)), [plain(c.name, 16) for c in columns], rotation=30, ha="left")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [plain(run.label(row), 22) for row in rows])
    axes.spines[:].set_visible(False)
    return finish(figure, "matrix", "Score matrix in percent: rows are moments, columns are evaluation sets.")


def positions(run: Run) -> list[int]:
    """Return the position of each row on the time axis: the tasks learned, or the samples of a stream seen once."""
    if run.results.online is not None:
        return [row.samples for row in run.results.rows]
    return [run.learned_count(row) for row in range(len(run.results.rows))]


def curve(axes: Axes, run: Run, column: Column, colour: str) -> None:
    """Draw the score of one set over the rows with its interval band."""
    places = positions(run)
    scores = [run.score(row, column) for row in range(len(places))]
    points = [
        (x, s.value, s.low, s.high) for x, s in zip(places, scores, strict=True) if s and s.value is not None
    ]
    xs, ys = [p[0] for p in points], [100 * p[1] for p in points]
    axes.plot(xs, ys, color=colour, marker="o", markersize=4, linewidth=1.8)
    band = [(x, low, high) for x, _, low, high in points if low is not None and high is not None]
    if len(band) > 1:
        axes.fill_between(
            [b[0] for b in band],
            [100 * b[1] for b in band],
            [100 * b[2] for b in band],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
    elif band:
        axes.vlines(band[0][0], 100 * band[0][1], 100 * band[0][2], color=colour, linewidth=1.4)
    learned_at = next(
        (
            x
            for x, row in zip(places, run.results.rows, strict=True)
            if row.index > 0 and column.task is not None and row.task == column.task
        ),
        None,
    )
    if learned_at is not None:
        axes.axvline(learned_at, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))


def curves(run: Run) -> tuple[list[tuple[Column, Drawing]], Drawing | None]:
    """Draw one small panel per set, and one figure of all panels for the folder."""
    columns = [*run.columns("known"), *run.columns("task"), *run.columns("retention")]
    top = _ceiling(run, columns)
    panels: list[tuple[Column, Drawing]] = []
    for index, column in enumerate(columns):
        figure = panel()
        _panel(figure.add_subplot(), run, column, top)
        panels.append((column, finish(figure, f"curve-{index}", _curve_alt(run, column), png=False)))
    if not columns:
        return [], None
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    figure = blank(2.7 * across, 1.95 * down)
    for index, column in enumerate(columns):
        _panel(figure.add_subplot(down, across, index + 1), run, column, top)
    return panels, finish(figure, "curves", "Score of every evaluation set over the tasks learned.")


def _ceiling(run: Run, columns: Sequence[Column]) -> float:
    """Return the upper limit that all panels share, so that they can be compared at a glance."""
    scores = [s for c in columns for row in range(len(run.results.rows)) if (s := run.score(row, c))]
    highest = max([100 * (s.high if s.high is not None else s.value or 0) for s in scores], default=100)
    return min(100.0, 10 * math.ceil(max(highest, 1) / 10 + 0.2))


def _panel(axes: Axes, run: Run, column: Column, top: float) -> None:
    colour = SERIES[("known", "task", "retention", "part", "everything").index(column.group)]
    curve(axes, run, column, colour)
    style_axes(axes)
    axes.set_ylim(0, top)
    time_axis(axes, run)
    axes.set_title(plain(column.name), fontsize=10.5, loc="left", color=TEXT)


def time_axis(axes: Axes, run: Run) -> None:
    """Set limits, ticks and label of the time axis of a small panel."""
    if run.results.online is not None:
        axes.set_xlim(0, run.results.online.samples * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.set_xlabel("samples seen", fontsize=8.5)
        return
    tasks = len(run.results.tasks)
    axes.set_xlim(-0.3, max(tasks, 1) + 0.3)
    axes.set_xticks(range(0, tasks + 1, max(1, tasks // 6)))
    axes.set_xlabel("tasks learned", fontsize=8.5)


def _curve_alt(run: Run, column: Column) -> str:
    values = [(s.value if (s := run.score(row, column)) else None) for row in range(len(run.results.rows))]
    listed = ", ".join("no cell" if value is None else plain_percent(value) for value in values)
    return f"{column.name} in percent over the rows: {listed}."


def changes(name: str, entries: Sequence[tuple[str, Change]], label: str, alt: str) -> Drawing | None:
    """Draw differences as dots with intervals around a zero line; a hollow dot is not resolved."""
    if not entries:
        return None
    figure = blank(4.4, 0.85 + 0.34 * len(entries))
    axes = figure.add_subplot()
    for y, (_, change) in enumerate(entries):
        if change.low is not None and change.high is not None:
            axes.hlines(y, 100 * change.low, 100 * change.high, color=SERIES[0], linewidth=2)
        face = SERIES[0] if change.resolved else GROUND
        axes.plot(
            [100 * change.value],
            [y],
            marker="o",
            markersize=7,
            color=SERIES[0],
            markerfacecolor=face,
            markeredgewidth=1.6,
            linestyle="none",
        )
    axes.axvline(0, color=MUTED, linewidth=1)
    style_axes(axes, grid="x")
    axes.set_yticks(range(len(entries)), [plain(title) for title, _ in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)
    low, high = axes.get_xlim()
    if high - low < 2:  # nearly no change: a tighter axis would make noise look large
        axes.set_xlim(-5, 5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel(label)
    return finish(figure, name, alt)


def drawn_spaces() -> dict[str, Metric]:
    """Return the metrics of the embedding space that a report draws, in order."""
    entries = {**metrics("spaces"), **metrics("space")}
    shown = {name: entry for name, entry in entries.items() if entry.shown is not None}
    return dict(sorted(shown.items(), key=lambda item: item[1].shown or 0))


def representation(run: Run) -> tuple[list[tuple[str, Drawing]], Drawing | None]:
    """Draw every metric of the embedding space over the rows, images and texts in one panel."""
    panels: list[tuple[str, Drawing]] = []
    shown = [(key, lines) for key in drawn_spaces() if (lines := _lines(run, key))]
    for key, lines in shown:
        figure = panel()
        _lines_panel(figure.add_subplot(), run, key, lines)
        panels.append((key, finish(figure, f"space-{key}", _lines_alt(key, lines), png=False)))
    if not shown:
        return [], None
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure = blank(2.9 * across, 2.0 * down)
    for index, (key, lines) in enumerate(shown):
        _lines_panel(figure.add_subplot(down, across, index + 1), run, key, lines)
    return panels, finish(
        figure, "representation", "Measurements of the embedding space over the tasks learned."
    )


Lines = dict[str, list[tuple[int, float]]]


def _lines(run: Run, key: str) -> Lines:
    lines: Lines = {}
    for side, name in (("", key), ("images", f"image_{key}"), ("texts", f"text_{key}")):
        values = [
            (x, row.representation.get(name)) for x, row in zip(positions(run), run.results.rows, strict=True)
        ]
        points = [(x, value) for x, value in values if value is not None]
        if points:
            lines[side] = points
    return lines


def _lines_panel(axes: Axes, run: Run, key: str, lines: Lines) -> None:
    for index, (side, points) in enumerate(lines.items()):
        axes.plot(
            *zip(*points, strict=True),
            color=series(index),
            marker=MARKERS[index],
            markersize=4,
            linewidth=1.6,
            linestyle=("-", "--")[index % 2],
            label=side,
        )
    style_axes(axes)
    time_axis(axes, run)
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    entry = drawn_spaces()[key]
    unit = " (°)" if entry.unit == "degrees" else ""
    axes.set_title(entry.label + unit, fontsize=10.5, loc="left", color=TEXT)
    if any(lines):
        # Beside the title, so that no line crosses it.
        axes.legend(
            frameon=False,
            fontsize=8,
            labelcolor=TEXT,
            handlelength=1.5,
            columnspacing=0.7,
            ncols=2,
            loc="lower right",
            bbox_to_anchor=(1.02, 0.98),
            borderaxespad=0,
            handletextpad=0.4,
        )


def _lines_alt(key: str, lines: Lines) -> str:
    said = [
        f"{side or 'value'} {', '.join(number(value, 2) for _, value in points)}"
        for side, points in lines.items()
    ]
    return f"{drawn_spaces()[key].label} over the rows: {'; '.join(said)}."


def seconds_by_stage(run: Run) -> Drawing | None:
    """Draw the seconds of each stage; `None` if the run recorded none."""
    parts = stages(run.results.cost)
    if not parts:
        return None
    figure: Figure = blank(4.4, 0.5 + 0.34 * len(parts))
    axes = figure.add_subplot()
    bars = axes.barh(range(len(parts)), list(parts.values()), color=SERIES[0], height=0.62)
    axes.bar_label(
        bars, [canvas.plain(seconds(value)) for value in parts.values()], padding=4, color=TEXT, fontsize=9
    )
    style_axes(axes, grid="")
    axes.set_yticks(range(len(parts)), [plain(name) for name in parts])
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.set_xlim(0, max(*parts.values(), 1e-9) * 1.25)
    axes.set_xticks([])
    axes.spines["left"].set_color(GRID)
    axes.spines["bottom"].set_visible(False)
    said = ", ".join(f"{name} {seconds(value)}" for name, value in parts.items())
    return finish(figure, "cost", f"Seconds by stage: {said}.")
