"""How many images per class does it take before training the towers beats a closed form, near to what is known and far?

Near: examples/photo-stream.yaml from `builtin:photo` (149 classes of photographs it has not seen, but of a kind that
it knows). Far: 50 classes of photographs (CIFAR-100) from `builtin:tiny`, which has seen drawings only. Each cell
(method x images per class) is a run of `everclip run`, resumable; a finished cell is read again. With few images,
epochs are added, so that no training is short of steps. Prints tables for benchmarks/CLOSED_FORMS.md and draws them.

Run: EVERCLIP_PACKS=... python benchmarks/how_many.py near|far [--counts 1 4 ...] [--tables] [--output runs/how-many]
     near also reads the cells with all images that benchmarks/safe.py left, with --all runs/safe/photo-stream
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from common import machine
from matplotlib.figure import Figure
from safe import change, outcomes

from everclip import execute
from everclip.evaluation.results import Results
from everclip.files import write_text_atomic

METHODS = ("rail", "text-ridge", "safe", "finetune")
EPOCHS, ENOUGH = 5, 16
"""Epochs of the streams, and from how many images per class; fewer images get more epochs, at most four times."""

NEAR = Path(__file__).parents[1] / "examples" / "photo-stream.yaml"
COUNTS = {"near": (1, 4), "far": (4, 16, 64, 225)}
ALL = 15
"""Images per class of photo-stream, on average, without a limit."""

DRAWS = 10_000


@dataclass(frozen=True)
class Cell:
    """What one run says, in points: new classes at the end, and the change of what was known, with 95 % intervals."""

    method: str
    count: int
    before: float
    new: float
    interval: tuple[float, float]
    kept: float
    kept_interval: tuple[float, float]
    minutes: float


def far_stream(folder: Path) -> Path:
    """Write the configuration of the stream that is far from what `builtin:tiny` knows."""
    packs = Path(os.environ["EVERCLIP_PACKS"])
    document = {
        "name": "photographs-for-tiny",
        "version": 1,
        "title": "Photographs for a model of drawings",
        "summary": "Sources: 50 classes of cifar100; classification.",
        "kind": "sources",
        "split": {"test": 0.08, "validation": 0.02},
        "class_templates": ["a photo of a {}"],
        "sources": [
            {
                "name": "cifar100",
                "data": {
                    "source": str(packs / "photo_pretrain"),
                    "columns": {"class_name": "class_name", "id": "id"},
                },
                "where": {"source": "cifar100"},
            }
        ],
        "retention": [
            {
                "name": "emoji",
                "data": {
                    "source": "builtin:emoji",
                    "language": "en",
                    "columns": {"class_name": "name", "class_key": "name"},
                },
                "where": {"time": {"to": 2015}, "shared": False, "held_out": True},
                "validation": 0.2,
                "templates": ["{}", "an emoji of {}"],
            }
        ],
        "protocols": [{"name": "own", "space": "own"}],
        "headline": {"protocol": "own", "metric": "accuracy"},
        "backbone": {"name": "builtin:tiny", "patch_dropout": 0.5},
        "training": {
            "epochs": EPOCHS,
            "batch_size": 64,
            "lr": 2.0e-4,
            "warmup": 0.1,
            "augment": {"crop_min": 0.6, "ratio": 1.33, "flip": 0.5, "colour": 0.2},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "far.yaml"
    write_text_atomic(file, yaml.safe_dump(document, sort_keys=False))
    return file


def epochs(count: int) -> int:
    """Return the epochs with so many images per class."""
    return min(4 * EPOCHS, max(EPOCHS, EPOCHS * ENOUGH // count))


def cell(method: str, count: int, folder: Path) -> Cell:
    """Read what a finished run says."""
    results = Results.read(folder)
    last = len(results.rows) - 1
    tasks = [c for c in results.columns if c.group == "task"]
    parts = [outcomes(folder, last, c) for c in tasks]
    # The mean over data sets; images are resampled within each.
    draw = np.random.Generator(np.random.Philox(0))
    means = [bootstrap(part, draw) for part in parts]
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    before = float(np.mean([outcomes(folder, 0, c).mean() for c in tasks]))
    kept, kept_interval = change([folder], [results])
    new = float(np.mean([part.mean() for part in parts]))
    minutes = results.cost["seconds_total"] / 60
    return Cell(method, count, before, new, (float(low), float(high)), kept, kept_interval, minutes)


def bootstrap(part: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return means of resampled outcomes."""
    return np.array([draw.choice(part, len(part)).mean() for _ in range(DRAWS)])


def rows(cells: list[Cell]) -> list[str]:
    """Return the table, in percent and points."""
    lines = [
        "| images per class | method | new | what was known, change | min/run |",
        "|---|---|---|---|---|",
        f"| 0 | (before) | {100 * cells[0].before:.1f} | | |",
    ]
    for c in sorted(cells, key=lambda c: (c.count, METHODS.index(c.method))):
        new = f"{100 * c.new:.1f} ({100 * c.interval[0]:.1f}-{100 * c.interval[1]:.1f})"
        kept = f"{100 * c.kept:+.1f} [{100 * c.kept_interval[0]:+.1f}, {100 * c.kept_interval[1]:+.1f}]"
        lines.append(f"| {c.count} | `{c.method}` | {new} | {kept} | {c.minutes:.1f} |")
    return lines


def draw(cells: list[Cell], file: Path, title: str) -> None:
    """Draw what is new, and what is kept, against the images per class."""
    figure = Figure((10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for at, method in enumerate(METHODS):
        own = sorted((c for c in cells if c.method == method), key=lambda c: c.count)
        x = [c.count * (1 + 0.03 * (at - 1.5)) for c in own]  # apart, so that intervals can be seen
        for axes, values, spans in (
            (left, [c.new for c in own], [c.interval for c in own]),
            (right, [c.kept for c in own], [c.kept_interval for c in own]),
        ):
            middle = 100 * np.array(values)
            bounds = np.abs(100 * np.array(spans).T - middle)
            axes.errorbar(x, middle, yerr=bounds, marker="o", capsize=2, label=method)
    left.set_ylabel("new classes, accuracy in percent")
    right.set_ylabel("what was known, change in points")
    right.axhline(0, color="#777", lw=0.8, ls="--")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("images per class")
        counts = sorted({c.count for c in cells})
        axes.set_xticks(counts, [str(c) for c in counts])
        axes.minorticks_off()
    left.legend()
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run every cell that is missing, print the table, draw it."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("which", choices=sorted(COUNTS))
    words.add_argument("--counts", nargs="*", type=int, help="images per class")
    words.add_argument("--methods", nargs="*", default=list(METHODS))
    words.add_argument("--all", type=Path, help="near: a folder with runs on all images, METHOD-s0")
    words.add_argument("--tables", action="store_true", help="run nothing")
    words.add_argument("--output", type=Path, default=Path("runs/how-many"))
    given = words.parse_args()
    stream = NEAR if given.which == "near" else far_stream(given.output)
    found: list[Cell] = []
    for count in given.counts or COUNTS[given.which]:
        for method in given.methods:
            folder = given.output / given.which / f"{method}-{count}"
            if not given.tables:
                execute(
                    stream, f"method={method}", f"scenario.shots={count}", f"training.epochs={epochs(count)}",
                    f"output={folder}", f"evaluation.cache={given.output / 'cache'}", "report=false",
                    "training.threads=1",
                )  # fmt: skip
            if (folder / "results.json").is_file():
                found.append(cell(method, count, folder))
            if found:
                print("\n".join(rows(found)), flush=True)
    if given.all is not None:
        found += [cell(m, ALL, given.all / f"{m}-s0") for m in given.methods]
    print("\n".join(["", f"Machine: {machine()}.", "", *rows(found)]))
    draw(found, given.output / f"{given.which}.png", f"{given.which}: new classes by the number of images")


if __name__ == "__main__":
    main()
