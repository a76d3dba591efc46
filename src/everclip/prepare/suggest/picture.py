"""The range test as a figure."""

from __future__ import annotations

from everclip.prepare.suggest.suggestion import Suggestion
from everclip.report import canvas


def draw(found: Suggestion) -> canvas.Drawing:
    """Draw loss over learning rate, with the points that were read from it."""
    rate = next((c.value for c in found.choices if c.key == "training.lr"), None)  # a closed form has none
    figure = canvas.blank(6.4, 3.6)
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, ".", color=canvas.MUTED, markersize=3, label="single batches")
    axes.plot(found.rates, found.smooth, color=canvas.series(0), linewidth=1.8, label="running mean")
    marks = [("suggested", rate, 2, "-")] if rate is not None else []
    marks += [("lowest", found.lowest, 3, ":")] if found.lowest is not None else []
    marks += [("steepest", found.steepest, 4, "--")] if found.steepest is not None else []
    marks += [("diverged", found.diverged, 1, "-.")] if found.diverged is not None else []
    for name, value, colour, style in marks:
        label = f"{name} {value:.1e}"
        axes.axvline(value, color=canvas.series(colour), linestyle=style, linewidth=1.3, label=label)
    canvas.style_axes(axes)
    axes.set_xscale("log")
    low, high = min(found.smooth), max(found.smooth[: max(1, len(found.smooth) // 2)])
    room = max(0.3 * (high - low), 0.05 * abs(high), 1e-6)
    axes.set_ylim(low - room, high + 2 * room)  # an explosion would flatten everything else
    axes.set_xlabel("learning rate")
    axes.set_ylabel("trained loss")
    axes.set_title(f"{canvas.plain(found.model)} on {canvas.plain(found.data, 40)}", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8, labelcolor=canvas.TEXT)
    suggested = "" if rate is None else f"; suggested {rate:.1e}"
    return canvas.finish(figure, "lr-range", f"Loss over learning rate{suggested}.")
