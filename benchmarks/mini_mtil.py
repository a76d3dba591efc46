"""Five data sets of photographs in sequence: every method, three seeds, two orders, cell by cell.

Run: EVERCLIP_PACKS=... python benchmarks/mini_mtil.py backbone.name=PHOTO_TINY_FOLDER
     EVERCLIP_PACKS=... python benchmarks/mini_mtil.py backbone.name=PHOTO_TINY_FOLDER --tune

A cell (method x seed x order) is a run of `everclip run`, resumable; a finished cell is read again. Prints per order
what `everclip compare` says: Transfer, Average, Last, retention, cost, with paired intervals over pictures against
plain fine-tuning. `--tune` tries the candidates of `TUNED` on validation pictures alone (seed 0, order I).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from common import machine

from everclip import execute
from everclip.config import resolve_config
from everclip.contracts import EvalSet
from everclip.evaluation.validation import set_score
from everclip.files import write_text_atomic
from everclip.learner.fit import check_fit, learner_for
from everclip.report.compare_html import write_comparison
from everclip.report.comparing import compare
from everclip.scenarios.load import load_scenario

STREAM = Path(__file__).parents[1] / "examples" / "mini-mtil.yaml"
METHODS: dict[str, list[str]] = {
    "zero-shot": [],
    "finetune": [],
    "lwf": [],
    "lwf-vr": [],
    "wise-ft": [],
    "icarl": [],
    "zscl": [],
    "moe-adapters": [],
    "coleclip": [],
    "rail": [],
}
"""Preset -> settings chosen on validation pictures (`--tune`); none: the preset's own were best or were not tuned."""

TUNED: dict[str, dict[str, list[str]]] = {
    "lwf": {"weight 1": [], "weight 0.3": ["method.penalties={lwf: {weight: 0.3}}"]},
    "lwf-vr": {"weight 1": [], "weight 0.3": ["method.penalties={lwf-vr: {weight: 0.3}}"]},
    "zscl": {
        "as it is": [],
        "weak constraint": ["method.penalties={zscl: {weight: 1}, weight-constraint: {weight: 0.01}}"],
    },
    "moe-adapters": {"1e-3": [], "3e-3": ["training.lr=3e-3"]},
    "coleclip": {"1e-3": [], "3e-3": ["training.lr=3e-3"]},
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
    """Learn the stream and score the last model on validation pictures: each task's own, and those of the retention."""
    config = resolve_config(str(STREAM), [*settings, "seed=0", "training.threads=1", "training.device=cpu"])
    scenario = load_scenario(config.scenario)
    learner = learner_for(config, scenario)
    check_fit(learner, scenario.tasks)
    started = time.monotonic()
    for task in scenario.tasks:
        learner.learn(task)
    sets = [EvalSet(t.name, "classification", t.val, t.index, "task", t.classes) for t in scenario.tasks]
    scores = {
        s.name: set_score(learner.method, s, learner.store)[0] for s in (*sets, *scenario.retention_val)
    }
    return {"scores": scores, "seconds": time.monotonic() - started}


def tune(given: argparse.Namespace) -> None:
    """Try every candidate once; those that were tried are read again."""
    print("| method | candidate | tasks, validation | retention, validation | s |\n|---|---|---|---|---|")
    for name in given.methods or TUNED:
        for candidate, own in TUNED.get(name, {"as it is": []}).items():
            file = given.output / "tuning" / f"{name}-{candidate.replace(' ', '-')}.json"
            if not file.is_file():
                found = on_validation([*given.settings, f"method={name}", *own])
                write_text_atomic(file, json.dumps(found, indent=1))
            found = json.loads(file.read_text())
            scores = found["scores"]
            tasks = statistics.mean(v for k, v in scores.items() if k != "cifar10")
            shown = f"{100 * tasks:.1f} | {100 * scores['cifar10']:.1f} | {found['seconds']:.0f}"
            print(f"| {name} | {candidate} | {shown} |", flush=True)


def main() -> None:
    """Run every cell that is missing, then print a table per order."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("settings", nargs="*", help="key=value for all runs")
    words.add_argument("--methods", nargs="*", choices=list(METHODS), help="default: all")
    words.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    words.add_argument("--orders", nargs="*", choices=["I", "II"], default=["I", "II"])
    words.add_argument("--output", type=Path, default=Path("runs/mini-mtil"))
    words.add_argument("--tune", action="store_true", help="try candidates on validation pictures instead")
    given = words.parse_intermixed_args()
    if given.tune:
        tune(given)
        return
    for order in given.orders:
        folders = [
            cell(name, order, seed, given) for seed in given.seeds for name in given.methods or METHODS
        ]
        print(table(order, folders), flush=True)
        print(write_comparison(folders, given.output / f"order-{order}" / "comparison", baseline="finetune"))


def table(order: str, folders: list[Path]) -> str:
    """Return the comparison of an order as a table in Markdown, in percent."""
    found = compare(folders, baseline="finetune")
    keys = ("transfer", "average", "new", "retention")
    lines = [
        f"\n## Order {order}\n",
        f"Machine: {machine()}.\n",
        "| method | seeds | Transfer | Average | Last | retention | min/run | Last against finetune |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in found.methods:
        values = [method.values[key] for key in keys]
        cells = [
            "-"
            if v is None
            else f"{100 * v.value:.1f}" + (f" ±{100 * v.deviation:.1f}" if v.deviation else "")
            for v in values
        ]
        against = [d.change for d in found.differences if d.method == method.label and d.quantity == "new"]
        change = against[0] if against else None
        said = "-" if change is None else f"{100 * change.value:+.1f}"
        if change is not None and change.low is not None and change.high is not None:
            said += f" [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
            said += "" if change.resolved else ", not resolved"
        seconds = method.seconds.value if method.seconds is not None else 0.0
        lines.append(
            f"| {method.label} | {len(method.members)} | {' | '.join(cells)} | {seconds / 60:.1f} | {said} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
