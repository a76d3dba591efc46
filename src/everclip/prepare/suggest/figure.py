"""The range test as a figure."""

from __future__ import annotations

from everclip.prepare.suggest.suggestion import Suggestion
from everclip.report import canvas


def draw(suggestion: Suggestion) -> canvas.Drawing:
    """Draw loss over learning rate, with the points that the range test found."""
    rate = next((c.value for c in suggestion.choices if c.key == "training.lr"), None)  # `rail` has none
    figure = canvas.blank(6.4, 3.6)
    axes = figure.add_subplot()
    axes.plot(
        suggestion.rates, suggestion.losses, ".", color=canvas.MUTED, markersize=3, label="single batches"
    )
    axes.plot(
        suggestion.rates, suggestion.smooth, color=canvas.series(0), linewidth=1.8, label="running mean"
    )
    marks = [("suggested", rate, 2, "-")] if rate is not None else []
    marks += [("lowest", suggestion.lowest, 3, ":")] if suggestion.lowest is not None else []
    marks += [("steepest", suggestion.steepest, 4, "--")] if suggestion.steepest is not None else []
    marks += [("diverged", suggestion.diverged, 1, "-.")] if suggestion.diverged is not None else []
    for name, value, colour, style in marks:
        label = f"{name} {value:.1e}"
        axes.axvline(value, color=canvas.series(colour), linestyle=style, linewidth=1.3, label=label)
    canvas.style_axes(axes)
    axes.set_xscale("log")
    low, high = min(suggestion.smooth), max(suggestion.smooth[: max(1, len(suggestion.smooth) // 2)])
    room = max(0.3 * (high - low), 0.05 * abs(high), 1e-6)
    axes.set_ylim(low - room, high + 2 * room)  # an explosion would flatten everything else
    axes.set_xlabel("learning rate")
    axes.set_ylabel("trained loss")
    axes.set_title(
        f"{canvas.plain(suggestion.model)} on {canvas.plain(suggestion.data, 40)}", fontsize=10, loc="left"
    )
    axes.legend(frameon=False, fontsize=8, labelcolor=canvas.TEXT)
    suggested = "" if rate is None else f"; suggested {rate:.1e}"
    return canvas.finish(figure, "lr-range", f"Loss over learning rate{suggested}.")
