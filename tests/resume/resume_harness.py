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


class Killed(BaseException):
    """Stands for the end of the process; a `BaseException`, so that no handler for errors sees it."""


def kind_of(point: str) -> str:
    """Return a crash point's name without its numbers: `before renaming N` for every checkpoint."""
    return re.sub(r"\d+", "N", point)


@contextmanager
def at_crash_points(act: Callable[[str], None]) -> Iterator[None]:
    """Call `act` at every crash point. Like `conftest.py`, leave out syncing, in child processes too."""
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


def assert_same_end(folder: Path, reference: Path, but: str | None = None) -> None:
    """Assert that two finished run folders hold bit for bit the same, but for timing; and no leftovers.

    Args:
        folder, reference: the run folders.
        but: a part of the results that may differ.
    """
    ours, theirs = Results.read(folder).without_timing(), Results.read(reference).without_timing()
    assert ours["status"] == "finished"
    assert [k for k in theirs if ours[k] != theirs[k] and k != but] == []
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
