"""The figure of rotations: how far the embeddings of images and texts moved from each row to the next."""

from __future__ import annotations

from matplotlib.axes import Axes

from everclip.evaluation.results import Row
from everclip.report.canvas import TEXT, Drawing, blank, finish, plain, series, style_axes
from everclip.report.formats import number
from everclip.report.runs import Run

_SIDES = (("images", "image"), ("texts", "text"))
_HEIGHT = 0.8
"""Height of the highest bar, where the histogram of each row has 1."""


def figure(run: Run) -> Drawing | None:
    """Draw a histogram of angles per row and tower; `None` if none was measured."""
    rows = [row for row in run.results.rows if row.rotations]
    if not rows:
        return None
    drawing = blank(7.0, 1.0 + 0.46 * len(rows))
    used = [i for row in rows for counts in row.rotations.values() for i, n in enumerate(counts) if n]
    for index, (side, prefix) in enumerate(_SIDES):
        axes = drawing.add_subplot(1, 2, index + 1)
        _histograms(axes, run, rows, side, prefix)
        width = 180 / len(rows[0].rotations[side])
        axes.set_xlim(0, min(180.0, width * (max(used, default=0) + 2)))
        axes.set_title(side, fontsize=10.5, loc="left", color=TEXT)
        axes.set_xlabel("angle to the row before (°)", fontsize=8.5)
    return finish(drawing, "rotations", _alt(run, rows))


def _histograms(axes: Axes, run: Run, rows: list[Row], side: str, prefix: str) -> None:
    """Draw the histograms of one tower below each other, the line of each at its mean."""
    colour = series(_SIDES.index((side, prefix)))
    for place, row in enumerate(rows):
        counts = row.rotations[side]
        width, top = 180 / len(counts), max(*counts, 1)
        heights = [_HEIGHT * n / top - place for n in counts]
        edges = [width * i for i in range(len(counts) + 1)]
        axes.stairs(heights, edges, baseline=-place, fill=True, color=colour)
        mean = row.representation.get(f"{prefix}_rotation_since_last_deg")
        if mean is not None:
            axes.vlines(mean, -place, -place + 1.1 * _HEIGHT, color=TEXT, linewidth=1.2)
    style_axes(axes, grid="x")
    labels = [plain(run.label(row), 18) for row in rows] if side == "images" else []
    axes.set_yticks([-place for place in range(len(labels))], labels, va="bottom")
    axes.set_ylim(-len(rows) + 0.9, 1)


def _alt(run: Run, rows: list[Row]) -> str:
    said = []
    for row in rows:
        means = [(s, row.representation.get(f"{p}_rotation_since_last_deg")) for s, p in _SIDES]
        texts = [f"{side} {number(value, 1)}" for side, value in means if value is not None]
        said.append(f"{run.label(row)}: {', '.join(texts) or 'not known'}")
    return f"Histograms of the angles by which embeddings moved from row to row; means in degrees: {'; '.join(said)}."
