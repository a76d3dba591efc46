"""A trial on a machine that becomes slower: it begins again, once, with the steps that fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rail_fixtures import pictures

from everclip.config import TrainingConfig
from everclip.contracts import Phase, Source, Stream
from everclip.prepare.suggest.time_limit import Slower, TimeLimit, within_time
from everclip.training.progress import Progress
from everclip.training.watching import StepLog
from micro import of_classes

LOG = StepLog(0, {"loss": torch.zeros(())}, 1e-3, None, 8)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def ended(micro_folder: Path, step_seconds: float, limit: float, first: float = 0.0) -> tuple[int, float]:
    """Return after how many of 100 steps a trial was ended, and what it says a step takes; (100, 0) if it was not."""
    task, clock = of_classes(pictures(micro_folder), 0, 0, 1), Clock()
    phases = [Phase("train", {"main": Stream((Source(task.train),), 8)})]
    watcher = TimeLimit(task, phases, TrainingConfig(steps=100), Progress(quiet=True), limit, clock)
    for step in range(100):
        clock.seconds += first if step == 0 else step_seconds
        try:
            watcher.after_step(LOG)
        except Slower as slower:
            return step + 1, slower.step_seconds
    return 100, 0.0


@pytest.mark.parametrize(
    ("step_seconds", "first", "taken"),
    [
        (0.6, 0.0, 100),  # as planned
        (0.6, 50.0, 100),  # only the first step is slow
        (1.1, 0.0, 100),  # a little more than planned
        (1.5, 0.0, 9),  # a fifth of the time is over after eight further steps
        (60.0, 0.0, 4),  # three steps are looked at, at least
    ],
)
def test_a_trial_that_would_take_twice_its_time_is_ended(
    micro_folder: Path, step_seconds: float, first: float, taken: int
) -> None:
    steps, seconds = ended(micro_folder, step_seconds, 60.0, first)
    assert steps == taken
    assert seconds == pytest.approx(step_seconds if taken < 100 else 0)
    assert ended(micro_folder, step_seconds, float("inf"), first) == (100, 0.0)


def test_the_second_attempt_takes_the_steps_that_fit_and_has_no_limit() -> None:
    asked: list[tuple[int, float]] = []

    def attempt(steps: int, limit: float) -> str:
        asked.append((steps, limit))
        if len(asked) == 1:
            raise Slower(2.0)
        return "done"

    assert within_time(attempt, 100, 60.0, Progress(quiet=True)) == "done"
    assert asked == [(100, 60.0), (24, float("inf"))]
    asked.clear()
    assert within_time(lambda steps, limit: steps, 7, 60.0, Progress(quiet=True)) == 7
