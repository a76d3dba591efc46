"""What a run says it cost is what was spent in all its sessions, those that were killed included."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import resume_cases as cases
import resume_harness as harness

from everclip.evaluation.results import Results
from everclip.run import Run
from everclip.training.progress import Progress

NAP = 0.3
"""Seconds that a slow step takes; a micro step takes hundredths."""


@pytest.fixture(autouse=True)
def written_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everclip.running.clock.WRITE_EVERY", 0.0)


def killed_after_naps(config: Any, steps: int, extend: bool = False) -> None:
    """Run until a number of slow steps were taken, then die."""
    left = steps
    count = Run.after_step

    def slow(run: Run, log: Any) -> bool:
        nonlocal left
        if not left:
            raise harness.Killed
        left -= 1
        time.sleep(NAP)
        return count(run, log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "after_step", slow)
        run = Run.of(config, Progress(quiet=True), extend=extend)
        with pytest.raises(harness.Killed):
            run.execute()


def spent(folder: str | Path) -> dict[str, Any]:
    """Return the cost that a run folder's result states."""
    return Results.read(Path(folder)).cost


def test_steps_that_a_kill_took_back_were_paid_for(case_config: Callable[..., Any]) -> None:
    config = case_config("finetune", "checkpoint.every_steps=1000")
    for _ in range(2):  # no checkpoint lies inside the task: both sessions begin it anew
        killed_after_naps(config, 2)
    cost = harness.run(config).cost
    assert cost["sessions"] == 3
    assert cost["seconds"]["training"] >= 2 * 2 * NAP
    assert cost["seconds_total"] == pytest.approx(sum(cost["seconds"].values()), abs=0.01)


def test_a_checkpoint_inside_a_task_does_not_count_its_steps_twice(case_config: Callable[..., Any]) -> None:
    config = case_config("finetune", "checkpoint.every_steps=1")
    started = time.monotonic()
    killed_after_naps(config, 2)
    cost = harness.run(config).cost
    assert 2 * NAP <= cost["seconds_total"] <= time.monotonic() - started
    assert cost["sessions"] == 2


def test_a_run_killed_before_its_first_row_counts(case_config: Callable[..., Any]) -> None:
    config = case_config("finetune")
    harness.killed_at(config, 2, "in evaluation", how=None)
    cost = harness.run(config).cost
    assert cost["sessions"] == 2
    assert list((Path(config.output) / "rows").glob("000.safetensors"))


def test_an_extension_adds_to_what_was_spent_before(micro_config: Callable[..., Any]) -> None:
    two = micro_config("time", *cases.SHORT, cases.TWO_YEARS)
    killed_after_naps(two, 2)
    before = harness.run(two).cost
    more = micro_config("time", *cases.SHORT)
    killed_after_naps(more, 2, extend=True)
    after = harness.run(more).cost
    assert (before["sessions"], after["sessions"]) == (2, 4)
    assert after["seconds"]["training"] >= before["seconds"]["training"] + NAP


def test_looking_at_a_finished_run_costs_nothing(case_config: Callable[..., Any]) -> None:
    config = case_config("finetune")
    first = harness.run(config).cost
    assert harness.run(config).cost == first
    assert spent(config.output)["sessions"] == 1
