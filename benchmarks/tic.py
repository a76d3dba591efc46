"""TiC-CLIP's ways of going on at equal computation: which model to start from, which data to see?

Run: python benchmarks/tic.py
     EVERCLIP_PACKS=... python benchmarks/tic.py --stream examples/photo-stream.yaml training.macs=2e12

A cell (way x seed) is a run of `everclip run`, resumable; a finished cell is read again. Every task may spend
`training.macs` multiply-accumulates, those of teachers and replayed samples included; `oracle` spends t times as much
at task t. The default is what plain fine-tuning needs for the 12 epochs of `emoji-time`, on average over its tasks.
Prints TiC's three averages and what was known before, ± over seeds, and the computation against `finetune`.
`--curve FILE.png` also draws scores against the computation spent so far. `key=value` arguments hold for all runs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import cell_options, machine
from matplotlib.figure import Figure
from mini_mtil import change_of, finished
from modx import spread

from everclip import execute
from everclip.report.comparing import compare
from everclip.report.runs import Run

WAYS: dict[str, list[str]] = {
    "finetune": [],
    "cumulative-all": [],
    "cumulative-exp": [],
    "cumulative-equal": [],
    "wise-ft": [],
    "lwf-tic": [],
    "restart": [],
    "restart from the start model": ["method=restart", "method.start=initial"],
    "oracle": [],
}
"""Way -> settings, if the name is no preset. The published names of `finetune` and `wise-ft`: sequential, patching."""
BASELINE = "finetune"
BUDGET = "training.macs=5.3e11"
METRICS = {"tic_in_domain": "in-domain", "tic_backward": "backward", "tic_forward": "forward"}
DRAWS = 4000


def cell(way: str, seed: int, given: argparse.Namespace) -> Path:
    """Run one cell, or read it again; return its folder."""
    folder = folder_of(way, seed, given)
    own = [*(WAYS[way] or [f"method={way}"]), f"seed={seed}", f"output={folder}"]
    shared = [f"evaluation.cache={given.output / 'cache'}", "report=false", "training.threads=1"]
    execute(given.stream, BUDGET, *shared, *given.settings, *own)
    return folder


def folder_of(way: str, seed: int, given: argparse.Namespace) -> Path:
    """Return the folder of a cell."""
    return Path(given.output / f"{way.replace(' ', '-')}-s{seed}")


def table(folders: dict[str, list[Path]]) -> str:
    """Return the comparison as a table in Markdown: shares in percent, ± over seeds."""
    found = compare([f for of in folders.values() for f in of], baseline=BASELINE, over="items", draws=DRAWS)
    runs = {way: [Run(folder) for folder in of] for way, of in folders.items()}
    retention = [c for c in next(iter(runs.values()))[0].results.columns if c.group in ("known", "retention")]
    # A stream without a base has a retention suite instead: the mean over its sets.
    before = "known" if any(c.group == "known" for c in retention) else "retention"
    heads = [*METRICS.values(), *(c.name for c in retention)]
    lines = [
        f"| way | seeds | {' | '.join(heads)} | {before} against {BASELINE} | MACs | min/run |",
        "|---" * (len(heads) + 5) + "|",
    ]
    plain = mean_macs(runs[BASELINE])
    for way, of in runs.items():
        values = [[run.results.metrics.get(name) for run in of] for name in METRICS]
        values += [
            [None if (s := run.score(run.last, c)) is None else s.value for run in of] for c in retention
        ]
        label = next(m.label for m in found.methods if of[0].place in (member.folder for member in m.members))
        minutes = sum(run.results.cost["seconds_total"] for run in of) / 60 / len(of)
        cells = [spread(value, 100, 1) for value in values]
        cells += [change_of(found, label, before), f"{mean_macs(of) / plain:.2f} x", f"{minutes:.1f}"]
        lines.append(f"| {way} | {len(of)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"1 x: {plain:.3g} multiply-accumulates. Machine: {machine()}."])


def mean_macs(runs: Sequence[Run]) -> float:
    """Return the multiply-accumulates of a run, the mean over seeds."""
    return float(sum(run.results.cost["macs"] for run in runs) / len(runs))


def points(run: Run) -> list[tuple[float, float, float]]:
    """Return, for each row of a run, the multiply-accumulates so far and two means over sets, in percent.

    The first mean is over the sets of all tasks, learned or not; the second over what was known before (the base and
    the retention suite).
    """
    spent = itertools.accumulate((task["macs"] for task in run.results.cost["macs_of_tasks"]), initial=0.0)
    groups = (("task",), ("known", "retention"))

    def mean_of(row: int, names: Sequence[str]) -> float:
        found = [run.score(row, c) for c in run.results.columns if c.group in names]
        values = [100 * score.value for score in found if score is not None and score.value is not None]
        return statistics.mean(values) if values else float("nan")

    return [
        (macs, *(mean_of(row, names) for names in groups))  # type: ignore[misc]
        for macs, row in zip(spent, range(len(run.results.rows)), strict=True)
    ]


def curve(runs: Mapping[str, Sequence[Run]], file: Path) -> None:
    """Draw both means of each way, over seeds, against the computation spent so far; a point per time step."""
    figure = Figure((12, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for number, (way, of) in enumerate(runs.items()):
        seeds = [points(run) for run in of]
        steps = [
            [statistics.mean(values) for values in zip(*at, strict=True)] for at in zip(*seeds, strict=True)
        ]
        for axes, which in zip(panels, (1, 2), strict=True):
            x, y = [step[0] for step in steps], [step[which] for step in steps]
            axes.plot(x, y, marker="os^DvPX*<"[number % 9], ms=5, lw=1.2, label=way)
    panels[0].set_title("sets of all time steps, mean, percent")
    panels[1].set_title("what was known before, mean, percent")
    for axes in panels:
        axes.set_xlabel("multiply-accumulates so far")
    panels[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run every cell that is missing, then print the table of those that are finished."""
    words = cell_options(__doc__, "a benchmark or a YAML with tasks in time", Path("runs/tic"))
    words.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    words.add_argument("--curve", type=Path, help="where to draw scores against computation, as PNG")
    given = words.parse_intermixed_args()
    if not given.tables:
        # Seed by seed, so that what is there after a stop is balanced.
        for seed in given.seeds:
            for way in given.ways:
                cell(way, seed, given)
    folders = {way: [folder_of(way, seed, given) for seed in given.seeds] for way in given.ways}
    done = {way: [folder for folder in of if finished(folder)] for way, of in folders.items()}
    done = {way: of for way, of in done.items() if of}
    print(table(done))
    if given.curve:
        curve({way: [Run(folder) for folder in of] for way, of in done.items()}, given.curve)


if __name__ == "__main__":
    main()
