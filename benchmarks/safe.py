"""Gain on what is new against retention of what was known: the preset `safe`, plain fine-tuning, and what lies between.

Run: python benchmarks/safe.py emoji-time
     EVERCLIP_PACKS=... python benchmarks/safe.py examples/photo-stream.yaml \
       --variant "safe, base data named" method=safe "scenario.base={name: known, data: {source: FOLDER}}"

Each cell (variant x seed) is a run of `everclip run`, resumable; a finished cell is read again. Prints a table for
benchmarks/SAFE.md and draws the frontier. Presets were chosen on validation pictures; this measures on test pictures.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from common import machine
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.numpy import load_file

from everclip import execute
from everclip.errors import ConfigError
from everclip.evaluation.results import Column, Results

MAIN = {"finetune": ["method=finetune"], "safe": ["method=safe"]}
FRONTIER = {
    "safe without guard": ["method=safe", "guard.max_drop=null"],
    "safe without merge": ["method=safe", "method.merge.kind=none"],
    "safe without distillation": ["method=safe", "method.penalties={}"],
    "safe without replay": ["method=safe", "method.replay.kind=none"],
    "earlier safe": [
        "method=safe",
        "method.lr_scale=0.5",
        "method.merge.kind=none",
        "guard={over: worst, every: 0.25}",
    ],
    "half rate without merge and guard": [
        "method=safe",
        "method.lr_scale=0.5",
        "method.merge.kind=none",
        "guard.max_drop=null",
    ],
    "replay": ["method=replay"],
    "replay-merge": ["method=replay-merge"],
    "wise-ft": ["method=wise-ft"],
    "finetune merged half": ["method=finetune", "method.merge.kind=wise-ft", "method.merge.alpha=0.5"],
    "finetune at a tenth of the rate": ["method=finetune", "method.lr_scale=0.1"],
}
"""Beside the two that are compared: one seed each, to show what else can be had."""

DRAWS = 10_000


@dataclass(frozen=True)
class Measured:
    """One variant over its seeds; shares in [0, 1], outcomes per picture averaged over seeds."""

    name: str
    seeds: int
    gain: float
    gain_wide: float
    at_once: float
    retention: float
    interval: tuple[float, float]
    minutes: float


def own_metric(column: Column, wide: bool = False) -> str:
    """Return what a column is read by: accuracy or mean R@1; `wide`: among the best five."""
    if column.kind == "classification":
        return "top5" if wide else "accuracy"
    return "mean_r5" if wide else "mean_r1"


def outcomes(folder: Path, row: int, column: Column) -> NDArray[np.float64]:
    """Return the outcome per item of a column at a row, among its own answers."""
    found = load_file(folder / "rows" / f"{row:03d}.safetensors")
    return found[f"{column.name}/own/{own_metric(column)}"].astype(np.float64)


def change(folders: list[Path], results: list[Results]) -> tuple[float, tuple[float, float]]:
    """Return the mean change of the retention columns from row 0 to the last, and its interval over pictures.

    Pictures are resampled within each column; a picture's outcome is its mean over seeds.
    """
    columns = [c for c in results[0].columns if c.group == "retention"]
    last = len(results[0].rows) - 1
    parts = [np.mean([outcomes(f, last, c) - outcomes(f, 0, c) for f in folders], axis=0) for c in columns]
    draw = np.random.Generator(np.random.Philox(0))
    means = np.mean([[draw.choice(part, len(part)).mean() for _ in range(DRAWS)] for part in parts], axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([part.mean() for part in parts])), (float(low), float(high))


def new(results: Results, row: int | None, wide: bool = False) -> float:
    """Return the mean of the task columns among their own answers at a row; `None`: each after its own task."""
    values = []
    for column in (c for c in results.columns if c.group == "task"):
        at = (column.task or 0) + 1 if row is None else row
        score = results.score(at, column.name, "own", own_metric(column, wide))
        values.append(0.0 if score is None or score.value is None else score.value)
    return sum(values) / len(values)


def measure(name: str, folders: list[Path]) -> Measured:
    """Return what the runs of one variant say."""
    results = [Results.read(folder) for folder in folders]

    def gained(row: int | None, wide: bool = False) -> float:
        return float(np.mean([new(r, row, wide) - new(r, 0, wide) for r in results]))

    retention, interval = change(folders, results)
    minutes = float(np.mean([r.cost["seconds_total"] / 60 for r in results]))
    return Measured(
        name, len(results), gained(-1), gained(-1, True), gained(None), retention, interval, minutes
    )


def rows_of(found: list[Measured]) -> list[str]:
    """Return the table, in points."""
    plain = found[0]
    lines = [
        "| variant | seeds | gain at the end | share of plain | gain, best five | share | gain after its task | "
        "retention, points [95 %] | min/run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        low, high = one.interval
        lines.append(
            f"| {one.name} | {one.seeds} | {100 * one.gain:+.1f} | {one.gain / plain.gain:.0%} | "
            f"{100 * one.gain_wide:+.1f} | {one.gain_wide / plain.gain_wide:.0%} | {100 * one.at_once:+.1f} | "
            f"{100 * one.retention:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] | {one.minutes:.1f} |"
        )
    return lines


def draw(found: list[Measured], file: Path, title: str) -> None:
    """Draw gain against retention, by the own metric and among the best five; the aim is the upper right."""
    figure = Figure((12, 5.5), layout="constrained")
    plain = found[0]
    shares = {
        "own metric": [100 * one.gain / plain.gain for one in found],
        "best five": [100 * one.gain_wide / plain.gain_wide for one in found],
    }
    for axes, (name, values) in zip(figure.subplots(1, 2, sharex=True), shares.items(), strict=True):
        axes.axvspan(-1, 100, color="#e8f3e8", zorder=0)
        axes.axhline(80, color="#777", lw=0.8, ls="--")
        axes.axvline(-1, color="#777", lw=0.8, ls="--")
        reach = max(values) - min(values)
        labels = apart(values, 0.05 * reach)
        edge = max(100 * one.interval[1] for one in found) + 0.3
        for one, y, label in zip(found, values, labels, strict=True):
            x = 100 * one.retention
            spread = [[x - 100 * one.interval[0]], [100 * one.interval[1] - x]]
            main = one.name in MAIN
            colour = "#b3332e" if main else "#44617b"
            axes.errorbar(x, y, xerr=spread, fmt="o", ms=8 if main else 5, color=colour)
            axes.plot([100 * one.interval[1], edge], [y, label], color="#bbb", lw=0.6)
            axes.annotate(one.name, (edge, label), fontsize=8, va="center", color=colour)
        left = min(100 * one.interval[0] for one in found) - 0.5
        axes.set_xlim(left, edge + 0.6 * (edge - left))  # room for the longest name
        axes.set_xlabel("retention suite, change in points (95 % over pictures)")
        axes.set_title(f"gain at the end, {name}, percent of plain fine-tuning's", fontsize=10)
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


def apart(values: list[float], least: float) -> list[float]:
    """Return places near `values` that are at least `least` apart, in the same order."""
    order = np.argsort(values, kind="stable")
    places = np.array(values, dtype=np.float64)
    for before, at in pairwise(order):
        places[at] = max(places[at], places[before] + least)
    return [float(place) for place in places]


def main() -> None:
    """Run every cell that is missing, print the table, draw the frontier."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("stream")
    words.add_argument("settings", nargs="*", help="key=value for all runs")
    words.add_argument("--seeds", default="0,1,2")
    words.add_argument("--output", type=Path, default=Path("runs/safe"))
    words.add_argument(
        "--frontier", default=",".join(FRONTIER), help="which other variants, by name; empty: none"
    )
    words.add_argument(
        "--variant", nargs="+", action="append", default=[], metavar="NAME KEY=VALUE", help="one more"
    )
    given = words.parse_args()
    more = {name: own for name, *own in given.variant}
    stem = Path(given.stream).stem
    seeds = [int(seed) for seed in given.seeds.split(",")]
    found = []
    others = {name: FRONTIER[name] for name in given.frontier.split(",") if name}
    left_out = []
    for name, own in {**MAIN, **more, **others}.items():
        folders: list[Path] = []
        for seed in seeds if name in MAIN else seeds[:1]:
            folder = given.output / stem / f"{name.replace(' ', '-').replace(',', '')}-s{seed}"
            fixed = [f"seed={seed}", f"output={folder}", f"evaluation.cache={given.output / 'cache'}"]
            try:
                execute(given.stream, *given.settings, *own, *fixed, "report=false", "training.threads=1")
            except ConfigError as error:  # such as a method that needs classes, on a stream of captions
                if name in MAIN:
                    raise
                left_out.append(f"{name} cannot run here: {error}")
                print(left_out[-1], flush=True)
                break
            folders.append(folder)
        if not folders:
            continue
        found.append(measure(name, folders))
        print(
            "\n".join([f"\n## {stem}", "", f"Machine: {machine()}.", "", *rows_of(found), *left_out, ""]),
            flush=True,
        )
    draw(found, given.output / f"{stem}.png", f"{stem}: what is gained, what is kept")
    print(given.output / f"{stem}.png")


if __name__ == "__main__":
    main()
