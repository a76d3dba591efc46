"""Draw a figure twice: as SVG in the colours of the page (light or dark), and as PNG on white.

Figures are drawn in the colours of the light theme. In the SVG, each of these colours becomes the CSS variable of its
role. matplotlib's `Figure` is used directly, without pyplot.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TEXT, MUTED, GRID, GROUND = "#1b1d21", "#55606d", "#c9ced6", "#fefeff"
SERIES = ("#0b62c4", "#c04a00", "#00795c", "#9a3d8c", "#8a6d00", "#00718f", "#b0234f", "#5b5b5c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_VARIABLES = {TEXT: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)", GROUND: "var(--ground)"} | {
    colour: f"var(--s{index})" for index, colour in enumerate(SERIES, start=1)
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "everclip",
    "font.family": "sans-serif",
    "font.size": 10,
}


@dataclass(frozen=True)
class Drawing:
    """A drawn figure: `name` of its file, `alt` text that describes it."""

    name: str
    alt: str
    svg: str
    png: bytes


def blank(width: float, height: float) -> Figure:
    """Return an empty figure; width and height are in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def panel() -> Figure:
    """Return an empty small panel. Its margins are fixed: computing them would double the time of a report."""
    figure = Figure(figsize=(2.9, 1.95))
    figure.subplots_adjust(left=0.15, right=0.97, top=0.87, bottom=0.235)
    return figure


def series(index: int) -> str:
    """Return the colour of a series. Markers distinguish series that share a colour."""
    return SERIES[index % len(SERIES)]


def plain(text: str, longest: int = 28) -> str:
    """Return a user's text shortened, with `$` escaped so that matplotlib reads no formula."""
    text = " ".join(text.split())
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def style_axes(axes: Axes, grid: str = "y") -> None:
    """Remove the frame of the axes; set colours and grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=TEXT, labelcolor=TEXT, length=0, labelsize=9)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    axes.title.set_color(TEXT)
    if grid:
        axes.grid(axis="y" if grid == "y" else "x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def finish(figure: Figure, name: str, alt: str, png: bool = True) -> Drawing:
    """Render a figure as SVG and, unless `png` is false, as PNG."""
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # matplotlib's font may lack characters of a name; in the SVG the fonts of the page draw them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        text, image = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        if png:
            figure.savefig(image, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Drawing(name, alt, _inline(text.getvalue(), name, alt), image.getvalue())


def _inline(svg: str, name: str, alt: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    # Several figures share the page, so their ids must differ.
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", head)
    return f'{head} role="img" aria-label="{escape(alt)}">{rest}'.strip()
