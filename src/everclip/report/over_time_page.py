"""The comparison over time as a self-contained page with its figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from everclip.errors import ConfigError
from everclip.files import write_bytes_atomic, write_text_atomic
from everclip.report import formats
from everclip.report.canvas import MARKERS, TEXT, Drawing, blank, finish, plain, series, style_axes
from everclip.report.estimates import Estimate
from everclip.report.html import render
from everclip.report.over_time import OverTime
from everclip.report.over_time_text import CAUTION, cells_of, hides, rows_of, trend

FILE = "over-time.html"
MANY = 15
"""Above this number of dated sets, intervals are drawn as a band."""


def write_over_time(found: OverTime, output: Path | str) -> Path:
    """Write the page, and its figure as PNG under `figures/` (or `<name>-figures/`).

    Args:
        found: the comparison.
        output: a file ending in `.html`, or a folder for `over-time.html`.

    Returns:
        The path of the page.

    Raises:
        ConfigError: for a file with another ending.
    """
    target = require_page(Path(output))
    page = target if target.suffix in (".html", ".htm") else target / FILE
    drawn = figure(found)
    folder = page.parent / (f"{page.stem}-figures" if page is target else "figures")
    write_bytes_atomic(folder / f"{drawn.name}.png", drawn.png)
    rows = [
        (name, metric, items, *cells_of(pair, name == "newest minus oldest"))
        for name, metric, items, pair in rows_of(found)
    ]
    context = {
        "title": f"{found.models[1]} against {found.models[0]} on {found.benchmark}",
        "found": found,
        "hides": hides(found),
        "trend": trend(found),
        "caution": CAUTION,
        "figure": drawn,
        "rows": rows,
        "level": formats.percent(found.confidence, 0),
    }
    write_text_atomic(page, render("over_time.html.j2", context))
    return page


def require_page(output: Path) -> Path:
    """Return where a page may be written.

    Raises:
        ConfigError: for a file that does not end in `.html`.
    """
    if output.suffix and output.suffix not in (".html", ".htm") and not output.is_dir():
        raise ConfigError(f"--output: {output}: expected a folder or a file ending in .html.")
    return output


def figure(found: OverTime) -> Drawing:
    """Draw the static suite beside the dated sets: a point, and a line over time, per model."""
    dated = blank(7.6 if found.static else 6.0, 3.3)
    ratios = [1, 3.6] if found.static else [1]
    places = dated.add_gridspec(1, len(ratios), width_ratios=ratios)
    if found.static is not None:
        axes = dated.add_subplot(places[0, 0])
        for index, value in enumerate((found.static.first, found.static.second)):
            _points(axes, [index], [value], index)
        axes.set_xticks([])
        axes.set_xlim(-0.7, 1.7)
        _finish(axes, "static suite")
    axes = dated.add_subplot(places[0, -1])
    names = [s.name for s in found.dated]
    for index, values in enumerate(([s.first for s in found.dated], [s.second for s in found.dated])):
        _points(axes, range(len(values)), values, index, found.models[index])
    shown = range(0, len(names), max(1, -(-len(names) // 12)))
    axes.set_xticks(list(shown), [plain(names[i], 12) for i in shown])
    if len(shown) > 7:
        axes.set_xticks(
            list(shown), [plain(names[i], 12) for i in shown], rotation=45, ha="right", rotation_mode="anchor"
        )
    _finish(axes, "dated sets, oldest first")
    dated.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=TEXT,
    )
    return finish(dated, "over-time", _said(found))


def _points(
    axes: Axes, x: Sequence[int] | range, values: Sequence[Estimate], index: int, label: str | None = None
) -> None:
    shown = [100 * v.value for v in values]
    low = [100 * (v.value if v.low is None else v.low) for v in values]
    high = [100 * (v.value if v.high is None else v.high) for v in values]
    # Side by side, so that equal scores are both seen.
    places = [at + 0.08 * (index - 0.5) for at in x]
    many = len(values) > MANY
    axes.plot(
        places,
        shown,
        color=series(index),
        marker=MARKERS[index],
        markersize=3 if many else 6,
        linewidth=1.7,
        linestyle="-" if index else "--",
        label=None if label is None else plain(label, 34),
    )
    if many:
        axes.fill_between(places, low, high, color=series(index), alpha=0.13, linewidth=0)
        return
    reach = [
        [y - of for y, of in zip(shown, low, strict=True)],
        [of - y for y, of in zip(shown, high, strict=True)],
    ]
    axes.errorbar(places, shown, yerr=reach, color=series(index), linestyle="none", elinewidth=1.1, capsize=2)


def _finish(axes: Axes, title: str) -> None:
    style_axes(axes)
    axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])  # a marker at 0 is not cut off
    axes.set_title(f"{title}, percent", fontsize=10.5, loc="left", color=TEXT)


def _said(found: OverTime) -> str:
    parts = []
    for place, model in enumerate(found.models):
        over = ", ".join(
            f"{s.name} {formats.plain_percent((s.first, s.second)[place].value)}" for s in found.dated
        )
        of = found.static
        suite = (
            ""
            if of is None
            else f"static suite {formats.plain_percent((of.first, of.second)[place].value)}, "
        )
        parts.append(f"{model}: {suite}{over}")
    return f"Scores in percent. {'; '.join(parts)}."
