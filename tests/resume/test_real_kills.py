"""SIGKILL from outside, at any instant, again and again: no `finally` runs, and the run still ends bit-identical."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_harness as harness

SMALL_BATCH = "training.batch_size=4"


@pytest.mark.parametrize(
    ("case", "kind", "number"),
    [
        ("finetune", "before renaming config.yaml", 1),
        ("replay", "before syncing N", 4),
        ("replay", "before renaming N", 7),
        ("finetune", "after renaming N", 3),
        ("replay", "before renaming N.safetensors", 2),
        ("finetune", "before renaming results.json", 3),
    ],
)
def test_what_a_killed_process_leaves_half_written_is_cleared_away(
    case: str,
    kind: str,
    number: int,
    case_config: Callable[..., Any],
    reference: Callable[..., Path],
) -> None:
    config, expected = case_config(case), reference(case)
    process = harness.in_child(config, number, kind)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    folder = Path(config.output)
    assert kind in ("after step", "after renaming N") or list(folder.rglob("*.tmp")) != []
    harness.run(config)
    harness.assert_same_end(folder, expected)


def _progress(folder: Path) -> tuple[Any, ...]:
    """What a run that gets anywhere changes."""
    log, checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
    names = sorted(p.name for p in checkpoints.glob("0*")) if checkpoints.is_dir() else []
    return (log.stat().st_size if log.is_file() else 0, tuple(names))


def kill_again_and_again(
    folder: Path, start: Callable[[], Any], stop: Callable[[Any], None], kills: int, longest: float
) -> int:
    """Start, wait until something was saved and a seeded moment longer, SIGKILL; return how many kills hit."""
    draw, hit = random.Random(kills), 0
    while hit < kills:
        before, process = _progress(folder), start()
        deadline = time.monotonic() + 120
        while _progress(folder) == before and stop_code(process) is None:
            assert time.monotonic() < deadline, "the run does not get anywhere"
            time.sleep(0.002)
        time.sleep(draw.uniform(0, longest))
        stop(process)
        if stop_code(process) != -signal.SIGKILL:
            break
        hit += 1
    return hit


def stop_code(process: Any) -> int | None:
    """The exit code, `None` while it runs."""
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def _kill(process: Any) -> None:
    process.kill()
    process.wait() if isinstance(process, subprocess.Popen) else process.join()


@pytest.mark.parametrize("case", ["replay", pytest.param("wise-ft", marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_bit_identical(
    case: str, case_config: Callable[..., Any], reference: Callable[..., Path]
) -> None:
    long = ("training.steps=40", SMALL_BATCH)
    config, expected = case_config(case, *long), reference(case, *long)
    folder = Path(config.output)
    hit = kill_again_and_again(folder, lambda: harness.in_child(config), _kill, 5, 0.03)
    assert hit == 5
    harness.run(config)
    harness.assert_same_end(folder, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "steps"), [(2, 20), (20, 60)])
def test_the_command_killed_and_given_again_ends_bit_identical(
    kills: int,
    steps: int,
    arguments: Callable[..., list[str]],
    reference: Callable[..., Path],
    tmp_path: Path,
) -> None:
    long = (f"training.steps={steps}", SMALL_BATCH)
    words, expected, folder = arguments("replay", *long), reference("replay", *long), tmp_path / "run"
    command = [sys.executable, "-m", "everclip.cli.main", *words]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    hit = kill_again_and_again(folder, start, _kill, kills, 0.06)
    assert hit == kills
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stderr
    harness.assert_same_end(folder, expected)
