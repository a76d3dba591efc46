"""TiC-CLIP's ways of going on at equal computation: which model to start from, which data to see?

Run: python benchmarks/tic.py
     EVERCLIP_PACKS=... python benchmarks/tic.py --stream examples/photo-stream.yaml training.macs=2e12

A cell (way x seed) is a run of `everclip run`, resumable; a finished cell is read again. Every task may spend
`training.macs` multiply-accumulates, those of teachers and replayed samples included; `oracle` spends t times as much
at task t. The default is what plain fine-tuning needs for the 12 epochs of `emoji-time`, on average over its tasks.
Prints TiC's three averages and what was known before, ± over seeds, and the computation against `finetune`.
`key=value` arguments hold for all runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common import cell_options, machine
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
    heads = [*METRICS.values(), *(c.name for c in retention)]
    lines = [
        f"| way | seeds | {' | '.join(heads)} | known against {BASELINE} | MACs | min/run |",
        "|---" * (len(heads) + 5) + "|",
    ]
    plain = mean_macs(runs[BASELINE])
    for way, of in runs.items():
        values = [[run.results.metrics.get(name) for run in of] for name in METRICS]
        values += [
            [None if (s := run.score(run.last, c)) is None else s.value for run in of] for c in retention
        ]
        label = next((m.label for m in found.methods if m.label in (way, of[0].name)), way)
        minutes = sum(run.results.cost["seconds_total"] for run in of) / 60 / len(of)
        cells = [spread(value, 100, 1) for value in values]
        cells += [change_of(found, label, "known"), f"{mean_macs(of) / plain:.2f} x", f"{minutes:.1f}"]
        lines.append(f"| {way} | {len(of)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"1 x: {plain:.3g} multiply-accumulates. Machine: {machine()}."])


def mean_macs(runs: Sequence[Run]) -> float:
    """Return the multiply-accumulates of a run, the mean over seeds."""
    return float(sum(run.results.cost["macs"] for run in runs) / len(runs))


def main() -> None:
    """Run every cell that is missing, then print the table of those that are finished."""
    words = cell_options(__doc__, "a benchmark or a YAML with tasks in time", Path("runs/tic"))
    words.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    given = words.parse_intermixed_args()
    if not given.tables:
        # Seed by seed, so that what is there after a stop is balanced.
        for seed in given.seeds:
            for way in given.ways:
                cell(way, seed, given)
    folders = {way: [folder_of(way, seed, given) for seed in given.seeds] for way in given.ways}
    done = {way: [folder for folder in of if finished(folder)] for way, of in folders.items()}
    print(table({way: of for way, of in done.items() if of}))


if __name__ == "__main__":
    main()
