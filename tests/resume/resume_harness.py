"""What the resume tier shares: cases, killing a run at a chosen place, comparing what is left with a reference."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from everclip.config import CheckpointConfig, RunConfig
from everclip.evaluation.results import Results
from everclip.run import Run
from everclip.training.checkpoint import Checkpoints
from everclip.training.progress import Progress
from micro import REFERENCE

TWO_YEARS = 'scenario.tasks=[{name: "2001", where: {time: 2001}}, {name: "2002", where: {time: 2002}}]'
SHORT = (
    "training.steps=3",
    "training.warmup=1",
    "checkpoint.every_steps=1",
    "evaluation.examples=1",
    "evaluation.batch_size=5",
)
SMALL_REPLAY = ("method=replay", "method.replay.size=7")
PROMPTS = "{prompt: {tower: both, count: 2, depth: all}}"
STRICT = ("guard.max_drop=1", "guard.every=1", "training.lr=3e-3")
MOE = "method.experts={count: 4, active: 2, width: 4}"
RAIL = ("method.dimension=32", "training.batch_size=12")
"""Passes of three steps over 36 and 28 samples."""
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "zero-shot": ("time", ("method=zero-shot",)),
    "finetune": ("time", ()),
    "finetune-sgd": ("time", ("training.optimiser=sgd", "training.nesterov=true")),
    "finetune-classes": ("classes", ("method.label_smoothing=0.1",)),
    "replay": ("time", SMALL_REPLAY),
    "replay-base": ("time", (*SMALL_REPLAY, "method.replay.base=true")),
    "replay-balanced": ("classes", (*SMALL_REPLAY, "method.replay.kind=balanced")),
    "replay-all": ("time", ("method=replay", "method.replay.kind=all", "method.replay.share=null")),
    "wise-ft": ("time", ("method=wise-ft",)),
    "wise-ft-classes": ("classes", ("method=wise-ft",)),
    "wise-ft-initial": (
        "time",
        ("method=wise-ft", "method.merge.alpha=0.5", "method.merge.reference=initial"),
    ),
    "running-mean": ("time", ("method.merge.kind=running-mean", "method.merge.every=2")),
    "running-mean-late": (
        "time",
        ("method.merge.kind=running-mean", "method.merge.every=1", "method.merge.start=0.4"),
    ),
    "joint": ("time", ("method=joint",)),
    "weight-constraint": ("time", ("method.penalties={weight-constraint: {weight: 0.1}}",)),
    "weight-constraint-initial": ("time", ("method.penalties={weight-constraint: {reference: initial}}",)),
    "lwf": ("time", ("method.penalties={lwf: {}}", "training.layer_decay=0.7")),
    "lwf-classes": ("classes", ("method.penalties={lwf: {images: own, text: student}}",)),
    "zscl": (
        "time",
        ("method=zscl", REFERENCE, "method.penalties.zscl.batch_size=3", "method.merge.wise_we=0.9"),
    ),
    "zscl-between": (
        "classes",
        ("method=zscl", REFERENCE, "method.penalties.zscl={toward_task_start: 0.8, image_image_weight: 1}"),
    ),
    "lwf-vr": ("classes", ("method=lwf-vr", "method.penalties.lwf-vr={sentences: 7, images: own}")),
    "icarl": ("classes", ("method=icarl", "method.replay.size=7")),
    "icarl-both": ("time", ("method=icarl", "method.replay.size=7", "method.replay.use=both")),
    "feature-distill": ("time", ("method.penalties={feature-distill: {}, lwf: {reference: initial}}",)),
    "guard-stop": ("classes", (*STRICT, "guard.action=stop")),
    "guard-step-back": ("classes", (*STRICT, "method=replay", "method.replay.size=7")),
    "safe": ("time", ("method=safe", "method.replay.size=7", "guard.every=1")),
    "lora": ("time", ("method.trainable=[{lora: {rank: 2}}, logit-scale]",)),
    "adapters-prompts": (
        "classes",
        (
            f"method.trainable=[{{adapter: {{width: 3}}}}, {PROMPTS}]",
            "method.merge={kind: wise-ft, alpha: 0.5}",
        ),
    ),
    "blocks": ("classes", ("method.trainable=[image-blocks:last1, text-bias, text-embeddings]",)),
    "frozen-image": (
        "time",
        (*SMALL_REPLAY, "method.trainable=[text, logit-scale]", "training.augment=none"),
    ),
    "frozen-text": ("classes", ("method.trainable=[image]", "training.augment=none")),
    "coleclip": ("classes", ("method=coleclip", "training.lr=1e-2")),
    "coleclip-plain": (
        "classes",
        ("method=coleclip", "method.momentum=null", "method.templates.training=all", "method.prompts=2"),
    ),
    "coleclip-guarded": (
        "classes",
        ("method=coleclip", "guard.max_drop=1", "guard.every=1", "training.lr=0.1"),
    ),
    "moe-adapters": ("classes", ("method=moe-adapters", MOE, "training.lr=1e-2")),
    "moe-adapters-fixed": (
        "classes",
        ("method=moe-adapters", MOE, "method.grow=false", "method.balance=0.01", "method.selector=none"),
    ),
    "moe-adapters-anchored": (
        "classes",
        (
            "method=moe-adapters",
            MOE,
            "method.selector=none",
            "method.penalties={lwf: {}, weight-constraint: {reference: initial}}",
            "method.merge={kind: wise-ft, alpha: 0.7, reference: initial}",
            "training.lr=1e-2",
        ),
    ),
    "moe-adapters-autoencoder": (
        "classes",
        (
            "method=moe-adapters",
            MOE,
            REFERENCE,
            "method.selector={kind: autoencoder, steps: 3, reference_steps: 3}",
            "training.lr=1e-2",
        ),
    ),
    "moe-adapters-captions": ("time", ("method=moe-adapters", MOE, "method.freeze=4", "training.lr=1e-2")),
    "moe-adapters-cil": (
        "classes",
        ("method=moe-adapters-cil", "method.experts.width=4", "training.batch_size=8"),
    ),
    "rail": ("classes", ("method=rail", *RAIL)),
    "rail-recursive": ("classes", ("method=rail-primal-published", *RAIL)),
    "rail-dual": ("classes", ("method=rail-dual", *RAIL)),
}
"""name -> (kind of scenario, overrides): every method, and every setting that makes a method keep something."""


class Killed(BaseException):
    """Stands for the end of the process; a `BaseException`, so that no handler for errors sees it."""


def overrides_of(case: str) -> tuple[str, tuple[str, ...]]:
    """Return the scenario kind and all overrides of a case: two short tasks."""
    kind, own = CASES[case]
    return kind, (*SHORT, TWO_YEARS if kind == "time" else "scenario.per_task=3", *own)


def kind_of(point: str) -> str:
    """Return a crash point's name without its numbers: `before renaming N` for every checkpoint."""
    return re.sub(r"\d+", "N", point)


@contextmanager
def at_crash_points(act: Callable[[str], None]) -> Iterator[None]:
    """Call `act` at every crash point. Syncing is left out: it protects from power cuts, which no test makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everclip.run.crash_point", act)
        patch.setattr("everclip.files.crash_point", act)
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def run(config: RunConfig, act: Callable[[str], None] = lambda point: None) -> Results:
    """Run in this process with nothing kept from earlier calls but the folder."""
    with at_crash_points(act):
        return Run.of(config, Progress(quiet=True)).execute()


def crash_points(config: RunConfig) -> list[str]:
    """Run to the end and return the crash points that were passed."""
    passed: list[str] = []
    run(config, passed.append)
    return passed


def killed_at(config: RunConfig, number: int, wanted: str | None = None, how: Any = None) -> bool:
    """Run until the `number`-th crash point (of the kind `wanted`), 1-based; whether it came that far."""
    left = number

    def act(point: str) -> None:
        nonlocal left
        if wanted is None or kind_of(point) == wanted:
            left -= 1
            if left == 0:
                if how is not None:
                    how()
                    return
                raise Killed(point)

    try:
        run(config, act)
    except Killed:
        return True
    return False


# -- comparing ------------------------------------------------------------------------------------------------


def newest(folder: Path) -> Any:
    """Return the newest good checkpoint of a run folder."""
    return Checkpoints(folder, CheckpointConfig()).latest()


def _state(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    found = newest(folder)
    place = {k: v for k, v in found.state["place"].items() if k not in ("seconds", "checkpoints", "events")}
    return found.tensors, {"place": place, "learner": found.state["learner"]}


def _files(folder: Path) -> dict[str, bytes]:
    kept = [folder / "metrics.jsonl", *folder.glob("rows/*"), *folder.glob("examples/*")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept if p.is_file()}


def assert_same_end(folder: Path, reference: Path) -> None:
    """Assert that two finished run folders hold bit for bit the same, but for timing; and no leftovers."""
    ours, theirs = Results.read(folder).without_timing(), Results.read(reference).without_timing()
    assert ours["status"] == "finished"
    assert [k for k in theirs if ours[k] != theirs[k]] == []
    (tensors, state), (expected, expected_state) = _state(folder), _state(reference)
    assert tensors.keys() == expected.keys()
    assert [k for k, v in expected.items() if not torch.equal(tensors[k], v)] == []
    assert state == expected_state
    files, wanted = _files(folder), _files(reference)
    assert files.keys() == wanted.keys()
    assert [k for k, v in wanted.items() if files[k] != v] == []
    assert_log_counts_up(folder)
    assert [p.name for p in folder.rglob("*.tmp")] == []


def assert_log_counts_up(folder: Path) -> None:
    """Assert that the log holds every step exactly once, in order."""
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, len(steps) + 1))


# -- real processes -------------------------------------------------------------------------------------------


def _child_run(config: RunConfig, number: int, wanted: str | None) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if number:
        killed_at(config, number, wanted, die)
    else:
        Run.of(config, Progress(quiet=True)).execute()


def _child_cli(arguments: list[str], errors: str, at: tuple[str, int, int] | None) -> None:
    from everclip.cli import main as cli

    sys.argv = ["everclip", *arguments]
    with open(errors, "w", encoding="utf-8", buffering=1) as file:
        sys.stderr = sys.stdout = file
        with at_crash_points(signals(*at) if at is not None else lambda point: None):
            cli.main()


def signals(wanted: str, number: int, sign: int) -> Callable[[str], None]:
    """Return what sends this process a signal at the `number`-th crash point of a kind."""
    left = number

    def act(point: str) -> None:
        nonlocal left
        if kind_of(point) == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), sign)

    return act


def _start(target: Callable[..., None], *arguments: Any) -> Any:
    # A server that has torch loaded and forks: a fresh process each time, without seconds of importing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["everclip.run", "everclip.cli.main", "resume_harness"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def in_child(config: RunConfig, number: int = 0, wanted: str | None = None) -> Any:
    """Start a run in a process of its own, which SIGKILLs itself at a crash point when `number` is given."""
    return _start(_child_run, config, number, wanted)


def command(arguments: list[str], errors: Path, at: tuple[str, int, int] | None = None) -> int:
    """Give an everclip command in a process of its own and return its exit code; output goes to `errors`.

    `at` = (kind of crash point, 1-based number, signal) makes the process send itself a signal there.
    """
    process = _start(_child_cli, arguments, str(errors), at)
    process.join(120)
    code = process.exitcode
    assert code is not None
    return int(code)
