"""The trial run on a small stream: learn, stop, resume bit-identically, classify. Runs in a child process.

`python -m everclip.prepare.doctor.trial FOLDER` prints one line of JSON: `stage` reached, `seconds`, and `error` if it
failed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from everclip.config import CheckpointConfig, RunConfig, resolve_config
from everclip.data.builtin.emoji import drawings
from everclip.errors import EverclipError, Interrupted
from everclip.evaluation.results import Results
from everclip.files import write_text_atomic
from everclip.learner import Learner
from everclip.run import execute
from everclip.training.checkpoint import Checkpoints
from everclip.training.progress import Progress

STREAM = """
name: trial
version: 1
summary: a few emoji of 2017, for trying an installation
kind: time
data: {source: builtin:emoji, language: en, styles: [noto]}
split: {column: held_out, validation: 0.1}
tasks: [{name: "2017", where: {time: 2017}}]
protocols: [{name: own, space: own}]
headline: {protocol: own, metric: mean_r1}
backbone: builtin:tiny
training: {steps: 6, batch_size: 16, lr: 1.0e-4, device: cpu}
"""

KNOWN = (
    "red heart",
    "soccer ball",
    "pizza",
    "crescent moon",
    "rainbow",
    "banana",
    "birthday cake",
    "maple leaf",
)
"""Names of drawings that `builtin:tiny` was trained on and can tell apart."""

ENOUGH = 6
"""How many of them must be classified correctly; guessing gets one right."""

STOP_AT = 3


class StopAtStep(Progress):
    """Silent progress that sends SIGTERM to this process after some steps, like a scheduler."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def update(
        self,
        done: int,
        note: str = "",
        total: int | None = None,
        left: float | None = None,
        run_left: float | None = None,
    ) -> None:
        """Send the signal at the step."""
        if note.startswith("loss") and done == STOP_AT:
            os.kill(os.getpid(), signal.SIGTERM)


def try_all(stream: Path, folder: Path, tell: Callable[[str], None]) -> None:
    """Learn, stop, resume, compare, classify.

    Args:
        stream: YAML file of a scenario.
        folder: folder of the two run folders.
        tell: called with each stage before it begins.

    Raises:
        EverclipError: if a stage fails or the resumed run differs.
    """
    whole, halves = (_config(stream, folder / name) for name in ("whole", "halves"))
    tell("learn")
    expected = execute(whole, progress=Progress(quiet=True))
    tell("stop")
    try:
        execute(halves, progress=StopAtStep())
    except Interrupted:
        pass
    else:
        raise EverclipError("the run continued although it was asked to stop (SIGTERM)")
    tell("resume")
    found = execute(halves, progress=Progress(quiet=True))
    compare(whole, halves, expected, found)
    tell("classify")
    classify(Learner.create("builtin:tiny", training={"device": "cpu"}))


def _config(stream: Path, output: Path) -> RunConfig:
    return resolve_config(str(stream), [f"output={output}", "report=false", "evaluation.examples=0"])


def compare(one: RunConfig, two: RunConfig, expected: Results, found: Results) -> None:
    """Compare weights and results of two runs, bit for bit.

    Raises:
        EverclipError: names what differs.
    """
    tensors: list[Mapping[str, Any]] = []
    for config in (one, two):
        loaded = Checkpoints(config.folder, CheckpointConfig()).latest()
        tensors.append({} if loaded is None else loaded.tensors)
    names = tensors[0].keys() | tensors[1].keys()
    different = sorted(
        n for n in names if any(n not in t for t in tensors) or not torch.equal(tensors[0][n], tensors[1][n])
    )
    if different or not names:
        raise EverclipError(
            f"the resumed run ended with other weights than the uninterrupted run: {', '.join(different[:3])}"
        )
    a, b = expected.without_timing(), found.without_timing()
    differing = [key for key in a if a[key] != b[key]]
    if differing:
        raise EverclipError(f"the resumed run has other results: {', '.join(differing)}")


def classify(learner: Learner) -> None:
    """Classify drawings that the start model knows.

    Raises:
        EverclipError: if too few are classified correctly.
    """
    rows = [row for row in drawings("en", ["noto"]).to_pylist() if row["name"] in KNOWN]
    answers = learner.classify([row["image"] for row in rows], list(KNOWN))
    right = sum(name == row["name"] for (name, _), row in zip(answers, rows, strict=True))
    if right < ENOUGH:
        raise EverclipError(
            f"builtin:tiny classified {right} of {len(KNOWN)} drawings correctly, expected at least {ENOUGH}"
        )


def main(folder: str) -> int:
    """Run all stages in `folder` and print the result."""
    outcome: dict[str, Any] = {"stage": "prepare"}
    started = time.monotonic()
    stream = Path(folder) / "trial.yaml"
    try:
        write_text_atomic(stream, STREAM)
        try_all(stream, Path(folder), lambda stage: outcome.update(stage=stage))
        outcome["stage"] = "done"
    except (EverclipError, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps({**outcome, "seconds": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
