"""Mod-X against plain continuation, LwF and WiSE-FT on a stream of captions: is search on the old domain kept?

Run: python benchmarks/modx.py
     EVERCLIP_PACKS=... python benchmarks/modx.py --stream examples/emoji-then-flickr8k.yaml

A cell (method x seed) is a run of `everclip run`, resumable; a finished cell is read again. Prints the score of every
set at the end, the change of the known set against plain continuation with its paired interval over items, and how far
both spaces turned, and turned apart, on the known set. `key=value` arguments hold for all runs (`training.epochs=3`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from common import cell_options, machine
from mini_mtil import change_of, finished

from everclip import execute
from everclip.report.comparing import compare
from everclip.report.runs import Run

METHODS = ("finetune", "lwf", "wise-ft", "mod-x")
BASELINE = "finetune"
SPACE = {
    "image_rotation_deg": "images turn °",
    "text_rotation_deg": "texts turn °",
    "pair_angle_change_deg": "pair angles change °",
    "procrustes_deviation": "rotations differ",
}
"""Name of a measurement of the last row against row 0 -> heading."""
DRAWS = 4000


def cell(name: str, seed: int, given: argparse.Namespace) -> Path:
    """Run one cell, or read it again; return its folder."""
    folder: Path = given.output / f"{name}-s{seed}"
    own = [f"method={name}", f"seed={seed}", f"output={folder}"]
    shared = [f"evaluation.cache={given.output / 'cache'}", "report=false", "training.threads=1"]
    execute(given.stream, *shared, *given.settings, *own)
    return folder


def table(folders: Sequence[Path]) -> str:
    """Return the comparison as a table in Markdown: shares in percent, ± over seeds."""
    found = compare(folders, baseline=BASELINE, over="items", draws=DRAWS)
    runs = [Run(folder) for folder in folders]
    columns = [c for c in runs[0].results.columns if c.group in ("known", "task", "retention")]
    head = [
        "method",
        "seeds",
        *(c.name for c in columns),
        f"known against {BASELINE}",
        *SPACE.values(),
        "min/run",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in found.methods:
        own = [run for run in runs if run.name == method.label]
        scores = [[s.value for run in own if (s := run.score(run.last, c)) is not None] for c in columns]
        space = [[run.results.rows[-1].representation.get(name) for run in own] for name in SPACE]
        minutes = "-" if method.seconds is None else f"{method.seconds.value / 60:.1f}"
        cells = [
            *(spread(values, 100, 1) for values in scores),
            change_of(found, method.label, "known"),
            *(spread(values, 1, 2) for values in space),
            minutes,
        ]
        lines.append(f"| {method.label} | {len(own)} | {' | '.join(cells)} |")
    before = [run.score(0, c) for run in runs[:1] for c in columns]
    shown = [spread([None if s is None else s.value], 100, 1) for s in before]
    lines.insert(2, f"| before | | {' | '.join(shown)} | {' | '.join([''] * (len(SPACE) + 2))} |")
    return "\n".join([*lines, "", f"Machine: {machine()}."])


def spread(values: Sequence[float | None], factor: float, digits: int) -> str:
    """Return the mean and, of several values, the standard deviation."""
    known = [factor * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    mean = f"{statistics.mean(known):.{digits}f}"
    return f"{mean} ±{statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def main() -> None:
    """Run every cell that is missing, then print the table of those that are finished."""
    words = cell_options(__doc__, "a benchmark or a YAML of captions with a base", Path("runs/modx"))
    words.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    given = words.parse_intermixed_args()
    if not given.tables:
        # Seed by seed, so that what is there after a stop is balanced.
        for seed in given.seeds:
            for name in given.methods:
                cell(name, seed, given)
    folders = [given.output / f"{name}-s{seed}" for name in given.methods for seed in given.seeds]
    print(table([folder for folder in folders if finished(folder)]))


if __name__ == "__main__":
    main()
