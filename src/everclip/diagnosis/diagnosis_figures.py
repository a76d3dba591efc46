"""The figures of a diagnosis: scores, classes, calibration, rotations, and the similarity of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from everclip.diagnosis.diagnosis_text import tells_classes
from everclip.diagnosis.records import Diagnosis, PartChange, ReliabilityBins, SetDiagnosis
from everclip.report import formats
from everclip.report.canvas import (
    GRID,
    MARKERS,
    MUTED,
    TEXT,
    Drawing,
    blank,
    finish,
    plain,
    series,
    style_axes,
)
from everclip.report.estimates import Estimate

SHOWN_CLASSES = 12
"""Classes with the largest losses, and with the largest gains, that a figure shows."""


def _small(height: float) -> Figure:
    """Return an empty small figure; its margins are fixed, because computing them takes most of its time."""
    drawn = Figure(figsize=(3.6, height))
    drawn.subplots_adjust(left=0.12, right=0.97, top=0.9, bottom=0.42 / height)
    return drawn


def _finish(drawn: Figure, name: str, alt: str) -> Drawing:
    return finish(drawn, name, alt, png=False)


def scores(found: Diagnosis) -> Drawing:
    """Draw old and new score of each set with their intervals."""
    sets = found.sets
    drawn = blank(7.0, 0.9 + 0.42 * len(sets))
    axes = drawn.add_subplot()
    for row, s in enumerate(sets):
        for index, value in enumerate((s.score.first, s.score.second)):
            _interval(axes, value, -row + (0.12 if index == 0 else -0.12), index)
        axes.annotate(
            "",
            xy=(100 * s.score.second.value, -row),
            xytext=(100 * s.score.first.value, -row),
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8},
        )
    for index, name in enumerate((found.old, found.new)):
        axes.plot([], [], color=series(index), marker=MARKERS[index], linestyle="none", label=plain(name, 34))
    style_axes(axes, grid="x")
    axes.set_yticks([-row for row in range(len(sets))], [plain(f"{s.name}", 26) for s in sets])
    axes.set_ylim(-len(sets) + 0.4, 0.6)
    axes.set_xlabel("percent", fontsize=9)
    drawn.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=TEXT)
    said = "; ".join(
        f"{s.name} {formats.plain_percent(s.score.first.value)} to {formats.plain_percent(s.score.second.value)}"
        for s in sets
    )
    return _finish(drawn, "scores", f"Scores of the old and the new model in percent: {said}.")


def _interval(axes: Axes, value: Estimate, y: float, index: int) -> None:
    x = 100 * value.value
    if value.low is not None and value.high is not None:
        axes.plot([100 * value.low, 100 * value.high], [y, y], color=series(index), linewidth=1.4)
    axes.plot([x], [y], color=series(index), marker=MARKERS[index], markersize=6)


def classes(s: SetDiagnosis) -> Drawing | None:
    """Draw the classes of a set that lost and gained most; `None` if no class changed or all have few images."""
    if not tells_classes(s):
        return None
    losses = [part for part in s.classes if part.new < part.old][:SHOWN_CLASSES]
    gains = [part for part in reversed(s.classes) if part.new > part.old][:SHOWN_CLASSES]
    if not losses and not gains:
        return None
    rows = max(len(losses), len(gains))
    drawn = blank(7.4, 0.9 + 0.27 * rows)
    for place, (title, parts) in enumerate((("lost most", losses), ("gained most", gains))):
        axes = drawn.add_subplot(1, 2, place + 1)
        for row, part in enumerate(parts):
            _move(axes, part, -row)
        style_axes(axes, grid="x")
        axes.set_yticks(
            [-row for row in range(len(parts))],
            [f"{plain(part.name, 20)}{' *' if part.resolved else ''}" for part in parts],
        )
        axes.set_ylim(-rows + 0.4, 0.6)
        axes.set_xlim(-3, 103)
        axes.set_title(title, fontsize=10.5, loc="left", color=TEXT)
        axes.set_xlabel("accuracy, percent", fontsize=8.5)
    return _finish(
        drawn,
        f"classes-{s.name}",
        f"{s.name}: classes that lost most ({_moves(losses)}) and gained most ({_moves(gains)}).",
    )


def _move(axes: Axes, part: PartChange, y: float) -> None:
    ends = [100 * part.old, 100 * part.new]
    axes.plot(ends, [y, y], color=GRID, linewidth=2.4, zorder=1)
    for index, x in enumerate(ends):
        axes.plot([x], [y], color=series(index), marker=MARKERS[index], markersize=5, zorder=2)


def _moves(parts: Sequence[PartChange]) -> str:
    return (
        ", ".join(
            f"{p.name} {formats.plain_percent(p.old, 0)} to {formats.plain_percent(p.new, 0)} percent"
            for p in parts
        )
        or "none"
    )


def reliability(s: SetDiagnosis) -> Drawing | None:
    """Draw accuracy against confidence of both models; `None` for a set without classes."""
    if s.calibration is None:
        return None
    drawn = _small(2.9)
    axes = drawn.add_subplot()
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    for index, bins in enumerate((s.calibration.old, s.calibration.new)):
        points = _points(bins)
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=series(index),
            marker=MARKERS[index],
            markersize=4,
            linewidth=1.5,
            label=("old", "new")[index],
        )
    style_axes(axes)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("confidence, percent", fontsize=8.5)
    axes.set_title(f"{plain(s.name, 24)}: accuracy, percent", fontsize=10, loc="left", color=TEXT)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=TEXT)
    errors = [formats.plain_percent(bins.error) for bins in (s.calibration.old, s.calibration.new)]
    return _finish(
        drawn,
        f"reliability-{s.name}",
        f"{s.name}: accuracy against confidence; calibration error {errors[0]} percent before, {errors[1]} after.",
    )


def _points(bins: ReliabilityBins) -> list[tuple[float, float]]:
    return [
        (100 * x, 100 * y)
        for x, y in zip(bins.confidences, bins.accuracies, strict=True)
        if x is not None and y is not None
    ]


def rotations(s: SetDiagnosis) -> Drawing | None:
    """Draw by how many degrees images and texts of a set turned; `None` if unknown."""
    if not any(s.rotations.values()):
        return None
    drawn = _small(2.4)
    axes = drawn.add_subplot()
    used = 0
    for index, (side, counts) in enumerate(s.rotations.items()):
        width, total = 180 / len(counts), max(1, sum(counts))
        edges = [width * i for i in range(len(counts) + 1)]
        axes.stairs([100 * n / total for n in counts], edges, color=series(index), linewidth=1.6, label=side)
        used = max([used, *(i for i, n in enumerate(counts) if n)])
    style_axes(axes)
    axes.set_xlim(0, min(180.0, 180 / len(counts) * (used + 2)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("turned by (°)", fontsize=8.5)
    axes.set_title(f"{plain(s.name, 24)}: share, percent", fontsize=10, loc="left", color=TEXT)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=TEXT)
    return _finish(
        drawn,
        f"turned-{s.name}",
        f"{s.name}: angles between the old and the new embedding of images and texts.",
    )


def blocks(found: Diagnosis) -> Drawing | None:
    """Draw the similarity of each block of both towers; `None` if blocks were not compared."""
    if not found.blocks:
        return None
    drawn = blank(5.2, 2.6)
    axes = drawn.add_subplot()
    said = []
    for index, (side, values) in enumerate(found.blocks.items()):
        points = [(number, value) for number, value in enumerate(values, start=1) if value is not None]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=series(index),
            marker=MARKERS[index],
            markersize=5,
            linewidth=1.6,
            label=f"{side} tower",
        )
        said.append(f"{side} tower {', '.join(f'{y:.3f}' for _, y in points)}")
    style_axes(axes)
    deepest = max(len(values) for values in found.blocks.values())
    axes.set_xticks(range(1, deepest + 1, max(1, deepest // 12)))
    low = min((v for values in found.blocks.values() for v in values if v is not None), default=0.0)
    axes.set_ylim(min(0.0, low) if low < 0.5 else 0.9 * low, 1.02)
    axes.set_xlabel("block", fontsize=8.5)
    axes.set_title("CKA of the old and the new model", fontsize=10, loc="left", color=TEXT)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=TEXT)
    return _finish(drawn, "blocks", f"CKA per block, 1 is the same: {'; '.join(said)}.")
