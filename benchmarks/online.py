"""SIT's symmetric loss against the asymmetric one and no training, on two streams that are seen once.

Run: python benchmarks/online.py emoji-online
     EVERCLIP_PACKS=... python benchmarks/online.py examples/cifar100-online.yaml

A cell (variant x seed) is a run of `everclip run`, resumable; a finished cell is read again. The seed draws the stream
(`order_seed`), too, and both losses learn the same stream: differences are paired by seed. Prints A_AUC, A_avg, A_last,
F_last and the probes that are never trained on; the difference of the losses; and that difference along the stream,
beside the number of classes seen. `key=value` arguments hold for all runs. `--tune` tries learning rates on validation
images instead, for both losses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from common import machine
from mini_mtil import finished

from everclip import execute
from everclip.config import resolve_config
from everclip.contracts import EvalSet
from everclip.evaluation.statistics import seed_spread
from everclip.evaluation.validation import set_score
from everclip.report.runs import Run
from everclip.running.prepare import prepare

VARIANTS = {
    "zero-shot": ["method=zero-shot"],
    "symmetric": ["method=sit"],
    "asymmetric": ["method=sit", "method.classes=seen"],
}
METRICS = {"a_auc": "A_AUC", "a_avg": "A_avg", "a_last": "A_last", "f_last": "F_last"}
RATES = ("5e-4", "2e-3", "8e-3")
Cells = dict[str, list[Run]]
"""Variant -> its runs, in the order of the seeds."""


def settings_of(variant: str, seed: int, given: argparse.Namespace) -> list[str]:
    """Return the settings of a run."""
    own = [*VARIANTS[variant], f"seed={seed}", f"scenario.order_seed={seed}"]
    return [*own, "report=false", "training.threads=1", *given.settings]


def cell(variant: str, seed: int, given: argparse.Namespace) -> Path:
    """Run one cell, or read it again; return its folder."""
    folder = folder_of(variant, seed, given)
    execute(
        given.stream,
        *settings_of(variant, seed, given),
        f"output={folder}",
        f"evaluation.cache={given.output / 'cache'}",
    )
    return folder


def folder_of(variant: str, seed: int, given: argparse.Namespace) -> Path:
    """Return the folder of a cell."""
    return Path(given.output) / Path(given.stream).stem / f"{variant}-s{seed}"


def tune(given: argparse.Namespace) -> None:
    """Learn the stream once per loss and learning rate; print the accuracy on its validation images, all classes."""
    print("| loss | learning rate | validation % | processor s |\n|---|---|---|---|")
    for variant in ("symmetric", "asymmetric"):
        for rate in RATES:
            told = [*settings_of(variant, given.seeds[0], given), f"training.lr={rate}"]
            prepared = prepare(resolve_config(given.stream, told))
            (task,), learner = prepared.tasks, prepared.learner
            assert task.val is not None
            started = time.process_time()
            learner.learn(task, show=False)
            seconds = time.process_time() - started
            shown = EvalSet("validation", "classification", task.val, 0, "task", task.classes)
            score = set_score(learner.method, shown, learner.features)[0]
            print(f"| {variant} | {rate} | {100 * score:.1f} | {seconds:.0f} |", flush=True)


def tables(cells: Cells) -> str:
    """Return the comparison as tables in Markdown: percent, ± over seeds."""
    runs = next(iter(cells.values()))
    probes = [c.name for c in runs[0].results.columns if c.group == "retention"]
    head = ["", "seeds", *METRICS.values(), *(f"{p}: before" for p in probes), *probes, "min/run"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for variant, own in cells.items():
        values = [[run.results.metrics.get(name) for run in own] for name in METRICS]
        values += [[probe(run, name, row) for run in own] for row in (0, -1) for name in probes]
        minutes = statistics.mean(sum(run.results.cost["seconds"].values()) / 60 for run in own)
        shown = [variant, str(len(own)), *map(spread, values), f"{minutes:.1f}"]
        lines.append(f"| {' | '.join(shown)} |")
    if "symmetric" in cells and "asymmetric" in cells:
        lines += ["", *differences(cells, probes), "", *along(cells)]
    return "\n".join([*lines, "", f"Machine: {machine()}."])


def probe(run: Run, name: str, row: int) -> float | None:
    """Return the score of a probe at a row; -1 is the last."""
    column = next(c for c in run.results.columns if c.name == name)
    score = run.score(row % len(run.results.rows), column)
    return None if score is None else score.value


def spread(values: Sequence[float | None]) -> str:
    """Return the mean in percent and, of several values, the standard deviation."""
    known = [100 * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    mean = f"{statistics.mean(known):.1f}"
    return f"{mean} ±{statistics.stdev(known):.1f}" if len(known) > 1 else mean


def difference(symmetric: Sequence[float | None], asymmetric: Sequence[float | None]) -> str:
    """Return the mean of paired differences in points, with Student's t interval over the pairs."""
    pairs = [100 * (a - b) for a, b in zip(symmetric, asymmetric, strict=True) if None not in (a, b)]  # type: ignore[operator]
    if not pairs:
        return "-"
    found = seed_spread(pairs)
    if found.low is None or found.high is None:
        return f"{found.mean:+.1f}"
    resolved = "" if found.low > 0 or found.high < 0 else ", not resolved"
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]{resolved}"


def paired(cells: Cells) -> list[tuple[Run, Run]]:
    """Return the runs of both losses that learned the same stream."""
    asymmetric = {run.results.seed: run for run in cells["asymmetric"]}
    return [(run, asymmetric[s]) for run in cells["symmetric"] if (s := run.results.seed) in asymmetric]


def differences(cells: Cells, probes: Sequence[str]) -> list[str]:
    """Return the table of symmetric minus asymmetric."""
    pairs = paired(cells)
    lines = ["Symmetric minus asymmetric, points, paired by seed, 95 % interval:\n", "| | |", "|---|---|"]
    for name, title in METRICS.items():
        both = [[run.results.metrics.get(name) for run in side] for side in zip(*pairs, strict=True)]
        lines.append(f"| {title} | {difference(*both)} |")
    for name in probes:
        both = [[probe(run, name, -1) for run in side] for side in zip(*pairs, strict=True)]
        lines.append(f"| {name} | {difference(*both)} |")
    return lines


def along(cells: Cells) -> list[str]:
    """Return the accuracy at each row that all streams have, with the classes seen, and the difference."""
    pairs = paired(cells)
    head = "| samples | classes seen | symmetric | asymmetric | difference |"
    lines = ["Along the stream:\n", head, "|---" * 5 + "|"]
    places = [{row.samples: row.index for row in run.results.rows} for pair in pairs for run in pair]
    for samples in sorted(set.intersection(*(set(place) for place in places)) - {0}):
        rows = [
            (a.results.rows[p[samples]], b.results.rows[q[samples]])
            for (a, b), p, q in zip(pairs, places[::2], places[1::2], strict=True)
        ]
        column = next(c for c in pairs[0][0].results.columns if c.group == "task")
        both = [
            [
                s.value if (s := run.score(row.index, column)) else None
                for run, row in zip(side, at, strict=True)
            ]
            for side, at in zip(zip(*pairs, strict=True), zip(*rows, strict=True), strict=True)
        ]
        seen = statistics.mean(len(row.per_class.get(column.name, {})) for row, _ in rows)
        shown = [f"{samples:,}", f"{seen:.0f}", spread(both[0]), spread(both[1]), difference(*both)]
        lines.append(f"| {' | '.join(shown)} |")
    return lines


def main() -> None:
    """Run every cell that is missing, then print the tables of those that are finished."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("stream", help="a benchmark or a YAML of kind online")
    words.add_argument("settings", nargs="*", help="key=value for all runs")
    words.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    words.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    words.add_argument("--output", type=Path, default=Path("runs/online"))
    words.add_argument("--tune", action="store_true", help="try learning rates on validation images instead")
    words.add_argument("--tables", action="store_true", help="run nothing: tables of the finished cells")
    given = words.parse_intermixed_args()
    if given.tune:
        tune(given)
        return
    if not given.tables:
        # Seed by seed, so that what is there after a stop is balanced.
        for seed in given.seeds:
            for variant in given.variants:
                cell(variant, seed, given)
    found: Cells = {}
    for variant in given.variants:
        folders = [folder_of(variant, seed, given) for seed in given.seeds]
        found[variant] = [Run(folder) for folder in folders if finished(folder)]
    print(tables({variant: runs for variant, runs in found.items() if runs}))


if __name__ == "__main__":
    main()
