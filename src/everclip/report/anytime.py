"""The anytime curve of a stream that is seen once: how good the model was whenever it was asked."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from everclip.evaluation.results import Column
from everclip.report.canvas import GRID, MARKERS, MUTED, SERIES, Drawing, blank, finish, plain, style_axes
from everclip.report.formats import plain_percent
from everclip.report.runs import Run

PROBES = 3
"""Most sets of the retention suite that the figure draws."""


def figure(run: Run) -> Drawing | None:
    """Draw accuracy among the classes seen so far, and the zero-shot probes; `None` for other streams."""
    columns = run.columns("task")
    if run.results.online is None or not columns:
        return None
    main, probes = columns[0], run.columns("retention")[:PROBES]
    drawn = blank(7.4, 3.5)
    upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for index, column in enumerate([main, *probes]):
        points = _points(run, column)
        if not points:
            continue
        name = (
            f"{column.name}: classes seen so far" if column is main else f"{column.name} (never trained on)"
        )
        xs, ys = [p[0] for p in points], [100 * p[1] for p in points]
        line = "-" if column is main else "--"
        upper.plot(
            xs,
            ys,
            color=SERIES[index],
            linewidth=1.8,
            linestyle=line,
            marker=MARKERS[index],
            markersize=4,
            label=plain(name, 40),
        )
        if column is main:
            low = [100 * (p[1] if p[2] is None else p[2]) for p in points]
            high = [100 * (p[1] if p[3] is None else p[3]) for p in points]
            upper.fill_between(xs, low, high, color=SERIES[index], alpha=0.18, linewidth=0)
    ends = [row.samples for row in run.results.rows if "part" in row.at]
    for axes in (upper, lower):
        for end in ends:
            axes.axvline(end, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        style_axes(axes)
    upper.set_ylim(bottom=0)
    upper.set_ylabel("percent", fontsize=9)
    upper.legend(
        frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0
    )
    counts = [(0, 0)] + [(row.samples, len(row.per_class.get(main.name, {}))) for row in run.results.rows[1:]]
    lower.fill_between([c[0] for c in counts], [c[1] for c in counts], color=GRID, step="pre", linewidth=0)
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    lower.set_ylabel("classes", fontsize=9)
    lower.set_xlabel("samples seen", fontsize=9)
    lower.set_xlim(0, run.results.online.samples * 1.02)
    said = ", ".join(f"{p[0]:,}: {plain_percent(p[1])}" for p in _points(run, main))
    return finish(drawn, "anytime", f"{main.name} in percent over the samples seen: {said}.")


Point = tuple[int, float, float | None, float | None]


def _points(run: Run, column: Column) -> list[Point]:
    scores = [(row.samples, run.score(index, column)) for index, row in enumerate(run.results.rows)]
    return [(x, s.value, s.low, s.high) for x, s in scores if s is not None and s.value is not None]


def note(run: Run) -> str:
    """Say how the stream was learned and measured; empty for other streams."""
    online = run.results.online
    if online is None:
        return ""
    every = "only at the ends of parts" if online.every is None else f"every {online.every:,} samples"
    steps = (
        ""
        if online.steps_per_sample is None
        else f", {online.steps_per_sample:.3g} gradient steps per sample ({online.steps_per_batch} per batch)"
    )
    borders = (
        "The method knew where a part begins."
        if online.borders
        else "The method was not told where a part begins."
    )
    return (
        f"Each of the {online.samples:,} samples was drawn once{steps}. Measured {every}, on the test images of the "
        f"classes seen by then; dashed lines are the ends of the {online.parts} parts. {borders}"
    )
