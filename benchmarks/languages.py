"""The parts of TEIR, one by one: CLL-CLIP on emoji-languages with and without initialisation and regularisation.

Run: python benchmarks/languages.py
     python benchmarks/languages.py --tune       (the learning rate, on validation captions)
     python benchmarks/languages.py --memory     (optimiser state: rows in use against the whole table)
     EVERCLIP_PACKS=... python benchmarks/languages.py --stream examples/flickr8k-languages.yaml --variants none both

A cell (variant x seed) is a run of `everclip run`, resumable; a finished cell is read again. Prints AA and F
of CLL-CLIP (arXiv 2401.17186) in both directions, and paired differences of variants with intervals over drawings.

`SETTINGS` keeps 18 cells within about half an hour of one core: six of the 24 languages, in five scripts, three passes
each. `LR` was chosen by `--tune`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from common import machine
from mini_mtil import finished

from everclip import execute
from everclip.config import resolve_config
from everclip.contracts import EvalSet
from everclip.evaluation.validation import set_score
from everclip.learner.fit import learner_for
from everclip.report.estimates import Change, mean_difference
from everclip.report.runs import Run
from everclip.scenarios.load import load_scenario

STREAM = "emoji-languages"
LR = "training.lr=5e-3"
SETTINGS = ["scenario.data.languages=[en, de, ru, zh, ar, hi]", "training.epochs=3"]
"""For the built-in stream only."""

BASELINE = "none"
VARIANTS: dict[str, list[str]] = {
    "none": ["method=cll-clip-naive"],
    "init": ["method=cll-clip", "method.rows=none"],
    "gradient": ["method=cll-clip-naive", "method.rows=gradient"],
    "decay": ["method=cll-clip-naive", "method.rows=decay"],
    "both": ["method=cll-clip-naive", "method.rows=both"],
    "TEIR": ["method=cll-clip"],
}
"""`gradient`, `decay` and `both` have regularisation alone; `TEIR` is initialisation and `both`."""

SCALES = {f"deviation {s}": ["method=cll-clip-naive", f"method.init={s}"] for s in ("0.005", "0.01", "0.04")}
"""For `--variants`: `none`, whose new rows have the deviation 0.02, with others. TEIR's is that of the table."""

DIRECTIONS = {"image to text": "image_to_text_r1", "text to image": "text_to_image_r1"}
FIGURES = ("AA", "F", "F of the first")
CHANGES = {"AA": "new", "F of the first": "forgetting_first"}
"""AA reads the last row. F reads rows before a language is scored, so that it has no interval."""
RATES = ("2e-3", "5e-3", "2e-2")
DRAWS = 4000


def cell(variant: str, seed: int, given: argparse.Namespace) -> Path:
    """Run one cell, or read it again; return its folder."""
    folder = folder_of(variant, seed, given)
    own = [*(VARIANTS | SCALES)[variant], f"seed={seed}", f"output={folder}"]
    shared = [f"evaluation.cache={given.output / 'cache'}", "report=false", "training.threads=1"]
    execute(given.stream, *shared, *stream_settings(given), *own)
    return folder


def folder_of(variant: str, seed: int, given: argparse.Namespace) -> Path:
    """Return the run folder of a cell."""
    folder: Path = given.output / Path(given.stream).stem / f"{variant}-s{seed}"
    return folder


def stream_settings(given: argparse.Namespace) -> list[str]:
    """Return the settings that hold for all cells."""
    return [*(SETTINGS if given.stream == STREAM else []), LR, *given.settings]


def figures(run: Run, metric: str) -> tuple[float, float, float]:
    """Return AA, F and F of the first language for one direction, in percent."""
    results = run.results
    names = [c.name for c in results.columns if c.group == "task"]
    protocol = results.matrix.protocol

    def score(row: int, name: str) -> float:
        found = results.score(row, name, protocol, metric)
        assert found is not None
        assert found.value is not None
        return 100 * found.value

    last = len(names)
    lost = [max(score(i, n) for i in range(j + 1, last)) - score(last, n) for j, n in enumerate(names[:-1])]
    return statistics.mean(score(last, n) for n in names), statistics.mean(lost), lost[0]


def learned(run: Run, metric: str) -> float:
    """Return the mean score of the languages right after they were learned, in percent."""
    results, protocol = run.results, run.results.matrix.protocol
    names = [c.name for c in results.columns if c.group == "task"]
    scores = [results.score(i + 1, n, protocol, metric) for i, n in enumerate(names)]
    return statistics.mean(100 * s.value for s in scores if s is not None and s.value is not None)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean and, of several values, the standard deviation over seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def said(change: Change | None) -> str:
    """Return a difference in points with its interval."""
    if change is None or change.low is None or change.high is None:
        return "-"
    text = f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    return text if change.resolved else f"{text}, not resolved"


def tables(given: argparse.Namespace) -> str:
    """Return the figures of all finished cells as tables in Markdown."""
    runs = {
        variant: [Run(f) for seed in given.seeds if finished(f := folder_of(variant, seed, given))]
        for variant in given.variants
    }
    runs = {variant: held for variant, held in runs.items() if held}
    if not runs:
        return "No cell was run to its end yet."
    head = [f"{what}, {way}" for way in DIRECTIONS for what in ("when learned", *FIGURES)]
    lines = [
        "R@1 in percent, ± standard deviation over seeds:\n",
        f"| variant | seeds | {' | '.join(head)} | min/run |",
        "|---" * (len(head) + 3) + "|",
    ]
    for variant, held in runs.items():
        cells = []
        for metric in DIRECTIONS.values():
            cells.append(spread([learned(run, metric) for run in held]))
            cells += [spread(column) for column in zip(*(figures(run, metric) for run in held), strict=True)]
        minutes = spread([run.results.cost["seconds_total"] / 60 for run in held])
        lines.append(f"| {variant} | {len(held)} | {' | '.join(cells)} | {minutes} |")
    for first, second in itertools.combinations(given.compared, 2):
        if first not in runs or second not in runs:
            continue
        changes = [said(mean_difference(runs[second], runs[first], key, DRAWS)) for key in CHANGES.values()]
        if (first, second) == tuple(given.compared[:2]):
            lines += [
                "\nDifferences of the mean of both directions, in points [95 % over drawings, seeds fixed]:\n",
                f"| | {' | '.join(CHANGES)} |",
                "|---" * (1 + len(CHANGES)) + "|",
            ]
        lines.append(f"| {second} - {first} | {' | '.join(changes)} |")
    return "\n".join([*lines, "", f"Machine: {machine()}."])


def tune(given: argparse.Namespace) -> None:
    """Learn the first languages by the baseline at several rates; score validation captions."""
    print("| rate | language: R@1 both ways when learned ... | then, after the last one | s |")
    print("|---|---|---|---|")
    told = [*stream_settings(given), *VARIANTS[BASELINE], "seed=0", "training.threads=1"]
    scenario = load_scenario(resolve_config(given.stream, told).scenario)
    for rate in RATES:
        config = resolve_config(given.stream, [*told, f"training.lr={rate}", "training.device=cpu"])
        learner = learner_for(config, scenario)
        started, sets, at_once = time.monotonic(), [], []
        for task in scenario.tasks[: given.tuned]:
            learner.learn(task)
            sets.append(EvalSet(task.name, "retrieval", task.val, task.index, "task", None))
            at_once.append(set_score(learner.method, sets[-1], learner.features)[0])
        last = [set_score(learner.method, one, learner.features)[0] for one in sets]
        cells = [
            ", ".join(f"{one.name} {100 * s:.1f}" for one, s in zip(sets, values, strict=True))
            for values in (at_once, last)
        ]
        print(f"| {rate} | {cells[0]} | {cells[1]} | {time.monotonic() - started:.0f} |", flush=True)


def memory(given: argparse.Namespace) -> None:
    """Grow the table language by language without training; print the rows that need optimiser state."""
    config = resolve_config(given.stream, [*given.settings, "method=cll-clip", "training.threads=1"])
    scenario = load_scenario(config.scenario)
    learner = learner_for(config, scenario)
    method = learner.method
    print(
        "| language | rows of the table | rows in use | optimiser state, whole table | rows in use | factor |"
    )
    print("|---|---|---|---|---|---|")
    for task in scenario.tasks:
        method.begin_task(task, learner.past())
        rows = next(p for n, p in method.named_parameters() if n.endswith("token_embedding.rows"))
        whole = len(method.state_dict()["counts"])
        # AdamW holds two moments of four bytes per value.
        sizes = [8 * count * rows.shape[1] / 1e6 for count in (whole, len(rows))]
        print(
            f"| {task.name} | {whole:,} | {len(rows):,} | {sizes[0]:.1f} MB | {sizes[1]:.2f} MB | "
            f"{sizes[0] / sizes[1]:.1f} |"
        )
        learner.tasks.append(task)


def main() -> None:
    """Run every cell that is missing, then print the tables of those that are finished."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("settings", nargs="*", help="key=value for all runs")
    words.add_argument("--stream", default=STREAM, help="a benchmark or a YAML of kind languages")
    words.add_argument("--variants", nargs="*", choices=list(VARIANTS | SCALES), default=list(VARIANTS))
    words.add_argument("--compared", nargs="*", choices=list(VARIANTS | SCALES), default=list(VARIANTS))
    words.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    words.add_argument("--output", type=Path, default=Path("runs/languages"))
    words.add_argument("--tune", action="store_true", help="compare learning rates on validation captions")
    words.add_argument("--tuned", type=int, default=4, help="with --tune: how many languages to learn")
    words.add_argument("--memory", action="store_true", help="print the size of the optimiser state instead")
    words.add_argument(
        "--tables", action="store_true", help="run nothing: the tables of the cells that are there"
    )
    given = words.parse_intermixed_args()
    if given.tune or given.memory:
        (tune if given.tune else memory)(given)
        return
    if not given.tables:
        # Seed by seed, so that what is there after a stop is balanced.
        for seed, variant in itertools.product(given.seeds, given.variants):
            cell(variant, seed, given)
    print(tables(given))


if __name__ == "__main__":
    main()
