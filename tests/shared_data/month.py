"""Two months of new product classes for a CLIP of one's own, step by step as a practitioner types it.

    EVERCLIP_PACKS=... python tests/shared_data/month.py FOLDER

The photographs are those of CIFAR-10 in the pack `photo_pretrain` (600 per class; every fourth is a test picture).
A small CLIP (the architecture of builtin:tiny, from random weights) learns six classes. Month 1 brings two new classes,
month 2 two more. Each method learns month 1, then month 2 with `--extend`. What `everclip suggest` proposes for month 1
learns it by the command that was printed, too. The tables show old and new together, the proposal beside the runs.
A step that is finished is read again.
"""

from __future__ import annotations

import collections
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

KNOWN = ("airplane", "automobile", "bird", "cat", "deer", "dog")
MONTHS = (("frog", "horse"), ("ship", "truck"))
METHODS = ("finetune", "safe", "rail")
PER_CLASS = 600
LEAK = ("truck", 428)
"""A test picture that is nearly the same as a training picture of its class; `check` stops on it."""
TRAINING = ("training.lr=3e-4", "training.epochs=5")
BASE = (
    "backbone.name=builtin:tiny",
    "backbone.weights=random",
    "backbone.patch_dropout=0.5",
    "method=finetune",
    "training.epochs=15",
    "training.batch_size=64",
    "training.lr=1e-3",
    "training.augment={crop_min: 0.5, ratio: 1.3, flip: 0.5, colour: 0.2}",
)


def write_photos(packs: Path, folder: Path) -> None:
    """Write class folders `known`, `month-1` and `month-2`, each with `train` and `test`."""
    home = dict.fromkeys(KNOWN, "known")
    home |= {name: f"month-{n}" for n, names in enumerate(MONTHS, start=1) for name in names}
    count: collections.Counter[str] = collections.Counter()
    for file in sorted((packs / "photo_pretrain").glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            name = row["class_name"]
            if row["source"] != "cifar10" or count[name] == PER_CLASS:
                continue
            side = "test" if count[name] % 4 == 0 else "train"
            if (name, count[name]) == LEAK:
                count[name] += 1
                continue
            path = folder / home[name] / side / name / f"{count[name]:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"])
            count[name] += 1


def everclip(folder: Path, *words: str, done: Path | None = None) -> str:
    """Run a command in `folder` as a user would and return what it prints; nothing, if `done` is there already."""
    if done is not None and (folder / done).exists():
        return ""
    print(f"$ everclip {shlex.join(words)}", flush=True)
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "everclip", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    print(ended.stdout[-3000:], ended.stderr[-800:], f"({time.monotonic() - started:.0f} s)", flush=True)
    if ended.returncode:
        raise SystemExit(f"exit code {ended.returncode}: {ended.stderr[-2000:]}")
    return ended.stdout


def edit(file: Path, **changes: Any) -> None:
    """Set keys of a YAML, as a user does in an editor."""
    document = {**yaml.safe_load(file.read_text(encoding="utf-8")), **changes}
    file.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")


def run(folder: Path, packs: Path) -> dict[str, Any]:
    """Take every step; return what `everclip compare` says as JSON."""
    if not (folder / "known").is_dir():
        write_photos(packs, folder)
    make_base(folder)
    for number in (1, 2):
        month(folder, number)
        for method in METHODS:
            more = ("--extend",) if number > 1 else ()
            everclip(
                folder,
                *("run", "month.yaml", f"method={method}", f"output=runs/{method}", *TRAINING, *more),
                done=Path(f"runs/{method}-{number}.done"),
            )
            (folder / f"runs/{method}-{number}.done").touch()
        if number == 1:
            suggested = run_suggested(folder)
    runs = [f"runs/{method}" for method in METHODS]
    everclip(folder, "compare", *runs, "-o", "compare.html")
    everclip(folder, "export", "runs/rail", "exported", "--force")
    found: dict[str, Any] = json.loads(everclip(folder, "compare", *runs, "--json"))
    print(f"proposed for month 1: {suggested}; after both months:", *found["leaders"], sep="\n  ")
    return found


def run_suggested(folder: Path) -> str:
    """Learn month 1 by the commands that `suggest` printed, and compare; return the proposal."""
    proposal = json.loads((folder / "suggested/suggestion.json").read_text(encoding="utf-8"))
    preset = next(c["value"] for c in proposal["choices"] if c["key"] == "method")
    commands = [line for line in map(shlex.split, proposal["command"]) if line[1] == "run"]
    runs = [f"runs/{method}" for method in METHODS]
    for number, words in enumerate(commands, start=1):
        output = f"runs/suggested-{number}"
        given = [word for word in words[2:] if not word.startswith("output=")]
        everclip(folder, "run", *given, f"output={output}", done=Path(f"{output}.done"))
        (folder / f"{output}.done").touch()
        runs.append(output)
    everclip(folder, "compare", *runs, "-o", "compare-1.html", done=Path("compare-1.html"))
    return str(preset) if proposal["decided"] else " or ".join(t["method"] for t in proposal["trials"])


def make_base(folder: Path) -> None:
    """Train and export the CLIP in service: it knows six classes."""
    everclip(folder, "init-config", "known", "-o", "known.yaml", done=Path("known.yaml"))
    everclip(folder, "run", "known.yaml", *BASE, "output=runs/base", done=Path("my-clip"))
    everclip(folder, "export", "runs/base", "my-clip", done=Path("my-clip"))
    everclip(folder, "eval", "my-clip", "--on", "known/test", "--template", "a photo of a {}")


def month(folder: Path, number: int) -> None:
    """Look at a month's data; write the stream, or append to it."""
    name = f"month-{number}"
    everclip(folder, "check", name)
    file = folder / "month.yaml"
    if number == 1:
        everclip(
            folder, "init-config", name, "--kind", "sources", "-o", "month.yaml", done=Path("month.yaml")
        )
        edit(
            file,
            backbone={"name": "my-clip"},
            base={"name": "known", "data": {"source": "known"}, "split": {"column": "split"}},
        )
        everclip(folder, "run", "month.yaml", "--dry-run")
        everclip(folder, "suggest", "month.yaml", "-o", "suggested", done=Path("suggested/suggestion.json"))
        return
    sources = yaml.safe_load(file.read_text(encoding="utf-8"))["sources"]
    edit(file, sources=[*sources[:1], {**sources[0], "name": name, "data": {"source": name}}])


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(os.environ["EVERCLIP_PACKS"]))
