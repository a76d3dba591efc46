"""Five data sets of photographs in sequence: every method, three seeds, two orders, cell by cell.

Run: EVERCLIP_PACKS=... python benchmarks/mini_mtil.py
     EVERCLIP_PACKS=... python benchmarks/mini_mtil.py --tune

A cell (method x seed x order) is a run of `everclip run`, resumable; a finished cell is read again. Prints per order
what `everclip compare` says: Transfer, Average, Last, retention, cost, with paired intervals over pictures against
plain fine-tuning. `--tune` tries the candidates of `TUNED` on
validation pictures of the first two tasks (seed 0, order I).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

from everclip import execute
from everclip.config import resolve_config
from everclip.contracts import EvalSet
from everclip.evaluation.results import Results
from everclip.evaluation.validation import set_score
from everclip.files import write_text_atomic
from everclip.learner.fit import check_fit, learner_for
from everclip.report.compare_html import write_comparison
from everclip.report.comparing import compare
from everclip.report.comparison import Comparison, Value
from everclip.report.runs import Run
from everclip.scenarios.load import load_scenario

STREAM = Path(__file__).parents[1] / "examples" / "mini-mtil.yaml"
EXPERTS = "method.experts={count: 4, noise: false, dropout: 0.0, scale: 1.0, blocks: last3}"
SELECTOR = "method.selector={kind: autoencoder, steps: 150, reference_steps: 300}"
BRIEF = "method.per_task={stanford_cars: {epochs: 1}}"
"""196 long names are half of an epoch's time, and at few pixels only the regression learns anything of them."""

METHODS: dict[str, list[str]] = {
    "zero-shot": [],
    "rail": [],
    "finetune": [BRIEF],
    "zscl": [BRIEF, "method.penalties={zscl: {weight: 1, batch_size: 32}, weight-constraint: {weight: 1}}"],
    "moe-adapters": [BRIEF, "training.lr=5e-3", "method.label_smoothing=0", EXPERTS, SELECTOR],
    "coleclip": [BRIEF, "training.lr=1e-2"],
    "lwf": [BRIEF],
    "lwf-vr": [BRIEF],
    "wise-ft": [BRIEF],
    "icarl": [BRIEF, "method.replay={kind: herding, size: 2000, use: both}"],
}
"""Preset -> settings chosen on validation pictures (`--tune`); none: the preset's own were best or were not tuned."""

DRAWS = 4000
"""Of every bootstrap, so that a pair is resolved everywhere or nowhere."""

MAIN = ("zero-shot", "finetune", "zscl", "moe-adapters", "coleclip", "rail")
"""The methods that learn the stream in order II, too."""

ZSCL = "ZSCL repository, mtil/results (arXiv 2303.06628)"
QUOTED = "quoted by later papers; the paper's own table was not at hand"

PUBLISHED: dict[str, dict[str, tuple[tuple[float, float, float], str]]] = {
    "I": {
        "zero-shot": ((69.4, 65.3, 65.3), ZSCL),
        "finetune": ((44.6, 55.9, 77.3), ZSCL),
        "lwf": ((56.9, 64.7, 74.6), ZSCL),
        "lwf-vr": ((57.2, 65.1, 76.6), ZSCL),
        "wise-ft": ((52.3, 60.7, 77.7), ZSCL),
        "icarl": ((50.4, 65.7, 80.1), ZSCL),
        "zscl": ((68.1, 75.4, 83.6), ZSCL),
        "moe-adapters": ((68.9, 76.7, 85.0), f"arXiv 2403.11549, {QUOTED}"),
        "rail": ((69.4, 77.8, 86.8), f"arXiv 2406.18868, dual form, {QUOTED}"),
    },
    "II": {
        "zero-shot": ((65.4, 65.3, 65.3), ZSCL),
        "finetune": ((46.6, 56.2, 67.4), ZSCL),
        "zscl": ((64.2, 74.5, 83.4), ZSCL),
    },
}
"""Transfer, Average, Last on MTIL with CLIP ViT-B/16 in percent, and where the figures come from.

What has no source is left out: MoE-Adapters in order II, and CoLeCLIP under this protocol.
"""

TUNED: dict[str, dict[str, list[str]]] = {
    "finetune": {
        "3 epochs, lr 2e-4": [],
        "6 epochs, lr 2e-4": ["training.epochs=6"],
        "6 epochs, lr 5e-4": ["training.epochs=6", "training.lr=5e-4"],
        "3 epochs, lr 2e-4, patch dropout 0.75": ["backbone.patch_dropout=0.75"],
        "3 epochs, lr 5e-4, patch dropout 0.75": ["training.lr=5e-4", "backbone.patch_dropout=0.75"],
    },
    "zscl": {
        "as it is": METHODS["zscl"],
        "weak constraint": [
            "method.penalties={zscl: {weight: 1, batch_size: 32}, weight-constraint: {weight: 0.01}}"
        ],
    },
    "lwf": {
        "weight 1": [],
        "weight 3": ["method.penalties={lwf: {weight: 3}}"],
    },
    "lwf-vr": {"weight 1": [], "weight 3": ["method.penalties={lwf-vr: {weight: 3}}"]},
    "moe-adapters": {
        "as it is": ["training.lr=3e-3"],
        "four experts in the last three blocks": METHODS["moe-adapters"],
    },
    "wise-ft": {"alpha swept": [], "alpha 0.8": ["method.merge={kind: wise-ft, alpha: 0.8}"]},
    "icarl": {
        "as it is": [],
        "labels of the memory, too": ["method.replay={kind: herding, size: 2000, use: both}"],
    },
    "rail": {
        "as it is": [],
        "ridge 1": ["method.ridge=1"],
        "ridge 0.01": ["method.ridge=0.01"],
        "fourier": ["method.expansion=fourier"],
    },
    "coleclip": {"lr 1e-3": [], "lr 1e-2": ["training.lr=1e-2"], "lr 3e-2": ["training.lr=3e-2"]},
}
"""Method -> candidate -> settings."""


def cell(name: str, order: str, seed: int, given: argparse.Namespace) -> Path:
    """Run one cell, or read it again; return its folder."""
    folder: Path = given.output / f"order-{order}" / f"{name}-s{seed}"
    own = [f"method={name}", f"seed={seed}", f"scenario.order={order}", f"output={folder}"]
    shared = [f"evaluation.cache={given.output / 'cache'}", "report=false", "training.threads=1"]
    execute(str(STREAM), *given.settings, *METHODS[name], *own, *shared)
    return folder


def on_validation(settings: list[str]) -> dict[str, Any]:
    """Learn the first two tasks of order I; score validation pictures of both and of the retention set."""
    settings = [setting for setting in settings if setting != BRIEF]  # it names a later task
    config = resolve_config(str(STREAM), [*settings, "seed=0", "training.threads=1", "training.device=cpu"])
    scenario = load_scenario(config.scenario)
    learner = learner_for(config, scenario)
    tasks = scenario.tasks[:2]
    check_fit(learner, tasks)
    started = time.monotonic()
    for task in tasks:
        learner.learn(task)
    sets = [EvalSet(t.name, "classification", t.val, t.index, "task", t.classes) for t in tasks]
    scores = {
        s.name: set_score(learner.method, s, learner.features)[0] for s in (*sets, *scenario.retention_val)
    }
    return {"scores": scores, "seconds": time.monotonic() - started}


def tune(given: argparse.Namespace) -> None:
    """Try every candidate once; those that were tried are read again."""
    headed = False
    for name in given.methods or TUNED:
        for candidate, own in TUNED.get(name, {"as it is": []}).items():
            if given.candidates and candidate not in given.candidates:
                continue
            told = [*given.settings, f"method={name}", *own]
            key = hashlib.sha256("\0".join([STREAM.read_text("utf-8"), *told]).encode()).hexdigest()[:12]
            file = given.output / "tuning" / f"{name}-{candidate.replace(' ', '-')}-{key}.json"
            if not file.is_file():
                found = on_validation(told)
                write_text_atomic(file, json.dumps(found, indent=1))
            found = json.loads(file.read_text())
            if not headed:
                print(f"| method | candidate | {' | '.join(found['scores'])} | s |")
                print("|---" * (3 + len(found["scores"])) + "|")
                headed = True
            shown = " | ".join(f"{100 * value:.1f}" for value in found["scores"].values())
            print(f"| {name} | {candidate} | {shown} | {found['seconds']:.0f} |", flush=True)


def main() -> None:
    """Run every cell that is missing, then print a table per order."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("settings", nargs="*", help="key=value for all runs")
    words.add_argument("--methods", nargs="*", choices=list(METHODS), help="default: all")
    words.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    words.add_argument("--orders", nargs="*", choices=["I", "II"], default=["I", "II"])
    words.add_argument("--output", type=Path, default=Path("runs/mini-mtil"))
    words.add_argument("--candidates", nargs="*", help="of those that --tune would try: these")
    words.add_argument("--tune", action="store_true", help="try candidates on validation pictures instead")
    words.add_argument(
        "--tables", action="store_true", help="run nothing: tables of the cells that are there"
    )
    given = words.parse_intermixed_args()
    if given.tune:
        tune(given)
        return
    if not given.tables:
        # Seed by seed, so that what is there after a stop is balanced.
        for seed, order in itertools.product(given.seeds, given.orders):
            for name in given.methods or METHODS:
                if order == "I" or name in MAIN:
                    cell(name, order, seed, given)
    for order in given.orders:
        folders = [
            folder
            for name in given.methods or METHODS
            for seed in given.seeds
            if finished(folder := given.output / f"order-{order}" / f"{name}-s{seed}")
        ]
        if not folders:
            print(f"Order {order}: no cell was run to its end yet.")
            continue
        print(tables(order, folders), flush=True)
        page = given.output / f"order-{order}" / "comparison"
        write_comparison(folders, page, comparison=compare(folders, over="items", draws=DRAWS))


def finished(folder: Path) -> bool:
    """Whether a cell was run to its end."""
    return (folder / "results.json").is_file() and Results.read(folder).status == "finished"


def tables(order: str, folders: list[Path]) -> str:
    """Return the comparison of an order as tables in Markdown, in percent."""
    names = list(dict.fromkeys(Run(folder).name for folder in folders))
    against = {name: compare(folders, baseline=name, over="items", draws=DRAWS) for name in names}
    first = "finetune" if "finetune" in names else names[0]
    found = against[first]
    head = ("method", "seeds", "Transfer", "Average", "Last", "retention", "min/run")
    lines = [
        f"\n## Order {order}\n",
        f"| {' | '.join(head)} | Last against {first} | retention against {first} |",
        "|---" * (len(head) + 2) + "|",
    ]
    for method in found.methods:
        cells = [said(method.values[key]) for key in ("transfer", "average", "new", "retention")]
        changes = [change_of(found, method.label, key) for key in ("new", "retention")]
        seconds = method.seconds.value if method.seconds is not None else 0.0
        row = [method.label, str(len(method.members)), *cells, f"{seconds / 60:.1f}", *changes]
        lines.append(f"| {' | '.join(row)} |")
    spent = sum(m.seconds.value * len(m.members) for m in found.methods if m.seconds is not None)
    lines += [f"\n{spent / 3600:.1f} core-hours.\n", *parts(folders), "", *pairs(against)]
    return "\n".join([*lines, "", *agreement(order, against)])


def said(value: Value | None) -> str:
    """Return a number in percent, with the standard deviation over seeds."""
    if value is None:
        return "-"
    return f"{100 * value.value:.1f}" + (f" ±{100 * value.deviation:.1f}" if value.deviation else "")


def change_of(found: Comparison, label: str, key: str) -> str:
    """Return a method's change against the baseline, in points with its interval."""
    change = next((d.change for d in found.differences if d.method == label and d.quantity == key), None)
    if change is None or change.low is None or change.high is None:
        return "-"
    text = f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    return text if change.resolved else f"{text}, not resolved"


def parts(folders: list[Path]) -> list[str]:
    """Return the last row of every column: whole sets, and their known and unseen classes."""
    runs = [Run(folder) for folder in folders]
    columns = [c for c in runs[0].results.columns if c.group in ("task", "part", "retention")]
    lines = [
        "Last row by set, mean over seeds:\n",
        f"| method | {' | '.join(c.name for c in columns)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name, own in itertools.groupby(runs, key=lambda run: run.name):
        held = list(own)
        cells = []
        for column in columns:
            scores = [run.score(run.last, column) for run in held]
            values = [s.value for s in scores if s is not None and s.value is not None]
            cells.append(f"{100 * statistics.mean(values):.1f}" if len(values) == len(held) else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def pairs(against: dict[str, Comparison]) -> list[str]:
    """Return which differences of Last, Average and retention are resolved over pictures: row minus column."""
    lines: list[str] = []
    for key, title in (("new", "Last"), ("average", "Average"), ("retention", "retention")):
        lines += [
            f"\n{title}: row minus column in points; in brackets what is not resolved.\n",
            f"| | {' | '.join(against)} |",
            "|---" * (1 + len(against)) + "|",
        ]
        cells: dict[tuple[str, str], str] = {}
        for baseline, found in against.items():
            for d in found.differences:
                if d.quantity == key and d.change is not None:
                    text = f"{round(100 * d.change.value, 1) + 0.0:+.1f}"  # no -0.0
                    cells[d.method, baseline] = text if d.change.resolved else f"({text})"
        lines += [f"| {row} | {' | '.join(cells.get((row, c), '') for c in against)} |" for row in against]
    return lines


def agreement(order: str, against: dict[str, Comparison]) -> list[str]:
    """Return the published figures with their sources, and which pairs of methods stand in that order."""
    listed = {n: v for n, v in PUBLISHED[order].items() if n in against}
    published = {name: figures for name, (figures, _) in listed.items()}
    lines = [
        "Published on MTIL with CLIP ViT-B/16 (the papers' figures, not ours):\n",
        "| method | Transfer | Average | Last | source |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {' | '.join(f'{x:.1f}' for x in figures)} | {source} |"
            for name, (figures, source) in listed.items()
        ),
        "",
        "Published order of each pair:\n",
        "| | agrees | not resolved here | disagrees |",
        "|---|---|---|---|",
    ]
    for place, key, title in ((0, "transfer", "Transfer"), (1, "average", "Average"), (2, "new", "Last")):
        sorts: dict[str, list[str]] = {"agrees": [], "open": [], "disagrees": []}
        for low in published:
            for d in against[low].differences:
                if d.quantity != key or d.change is None or d.method not in published:
                    continue
                if published[d.method][place] > published[low][place]:
                    same = "agrees" if d.change.value > 0 else "disagrees"
                    sorts[same if d.change.resolved else "open"].append(f"{d.method} > {low}")
        told = [
            str(len(v)) if k == "agrees" or not v else f"{len(v)}: {', '.join(v)}" for k, v in sorts.items()
        ]
        lines.append(f"| {title} | {' | '.join(told)} |")
    return lines


if __name__ == "__main__":
    main()
