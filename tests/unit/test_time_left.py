"""Progress and its estimates, with a simulated clock: machines that are slow, busy, or change while a run goes on."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from everclip.config import TrainingConfig
from everclip.contracts import Phase
from everclip.errors import DivergedError
from everclip.methods.settings import SlotSettings
from everclip.run import Run
from everclip.running.task_progress import TaskProgress
from everclip.running.time_left import TimeLeft, sizes_of
from everclip.training.progress import Pace, Progress, speed
from everclip.training.watching import Cursor, StepLog


class Time:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at

    def spend(self, seconds: float) -> None:
        self.at += seconds


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


# -- pace -----------------------------------------------------------------------------------------------------


def test_a_pace_is_that_of_what_was_done_last() -> None:
    time = Time()
    pace = Pace(time)
    for done in range(100):
        pace.mark(done)
        time.spend(1)
    assert pace.seconds == pytest.approx(1)
    for done in range(100, 130):  # another program takes half of the machine
        pace.mark(done)
        time.spend(3)
    assert pace.seconds == pytest.approx(3, rel=0.1)


def test_a_busy_machine_does_not_make_the_pace_jump() -> None:
    time = Time()
    pace, seen = Pace(time), []
    for done in range(300):
        pace.mark(done)
        time.spend(0.2 if done // 5 % 2 else 1.8)  # a burst of five slow steps, then five fast ones
        if done > 30 and pace.seconds is not None:
            seen.append(pace.seconds)
    assert 0.8 < min(seen) <= max(seen) < 1.25


def test_slow_work_is_averaged_over_several_marks() -> None:
    time = Time()
    pace = Pace(time)
    for done, seconds in enumerate((100, 20, 180, 100, 100, 100, 20, 180)):
        pace.mark(done)
        time.spend(seconds)
    assert pace.seconds == pytest.approx(100, rel=0.21)


def test_a_pace_goes_on_after_a_pause() -> None:
    time = Time()
    pace = Pace(time)
    for done in range(30):
        pace.mark(done)
        time.spend(1)
    pace.pause()
    time.spend(1000)  # other work
    for done in range(2):
        pace.mark(done)
        time.spend(4)
    assert pace.seconds == pytest.approx(1, rel=0.15), "one slow step is no new pace"
    for done in range(2, 30):
        pace.mark(done)
        time.spend(4)
    assert pace.seconds == pytest.approx(4)


@pytest.mark.parametrize(
    ("samples", "seconds", "text"),
    [
        (64, 0.1, "640 samples/s"),
        (64, 20, "3.2 samples/s"),
        (64, 64.1, "64.1 s/step"),
        (8, 150, "150.0 s/step"),
    ],
)
def test_speed_is_told_in_a_unit_above_one(samples: int, seconds: float, text: str) -> None:
    assert speed(samples, seconds) == text


# -- lines ----------------------------------------------------------------------------------------------------


def test_the_time_left_is_that_of_the_last_steps() -> None:
    time, stream = Time(), io.StringIO()
    progress = Progress(stream=stream, now=time, every=0)
    progress.start("task", 200)
    for done in range(1, 101):
        time.spend(1)
        progress.update(done)
    assert lines(stream)[-1] == "task: 100/200    1:40 left"
    for done in range(101, 151):
        time.spend(4)
        progress.update(done)
    assert lines(stream)[-1].endswith("150/200    3:20 left")


def test_what_the_caller_knows_better_is_shown() -> None:
    time, stream = Time(), io.StringIO()
    progress = Progress(stream=stream, now=time, every=1)
    progress.start("task", 10)
    time.spend(2)
    progress.update(1, "loss", left=65, run_left=3700)
    assert lines(stream)[-1] == "task: 1/10  loss  1:05 left, run 1:01:40 left"
    progress.aside("encode", 3, 9)
    time.spend(2)
    progress.aside("encode", 5, 9)
    assert lines(stream)[-1] == "task: encode 5/9"


# -- the whole run --------------------------------------------------------------------------------------------


class Simulated:
    """A run on a simulated machine: what it takes, what the time_left says, what was left in truth."""

    def __init__(self, sizes: list[float], steps: int, row: float, slower: Callable[[float], float]) -> None:
        self.time, self.told = Time(), list[tuple[float, float]]()
        self._slower, self._steps, self._row = slower, steps, row
        self.time_left = TimeLeft(sizes, self.time)
        self.evaluate(-1)
        for task, size in enumerate(sizes):
            self.learn(task, round(steps * size))
            self.evaluate(task)

    def spend(self, seconds: float) -> None:
        self.time.spend(seconds * self._slower(self.time.at))
        left = self.time_left.run_left()
        if left is not None:
            self.told.append((self.time.at, left))

    def learn(self, task: int, steps: int) -> None:
        self.time_left.begin_task(task, [("train", steps), ("selector", 300), ("calibrate", 20)])
        self.spend(5)  # frozen features
        for phase, (count, seconds) in enumerate(((steps, 1.0), (300, 0.02), (20, 0.05))):
            for done in range(1, count + 1):
                self.spend(seconds)
                self.time_left.step(phase, done)
        self.spend(4)  # merging
        self.time_left.end_task()

    def evaluate(self, task: int) -> None:
        self.time_left.begin_row(task)
        for done in range(1, 11):
            self.spend(self._row / 20)
            self.time_left.encoded(done, 10)
        self.spend(self._row / 2)  # texts and scores, which no picture counts
        self.time_left.end_row()

    def factors(self, after: float) -> list[float]:
        """Return what was told over what was left in truth, from some second on."""
        end = self.time.at
        return [left / (end - at) for at, left in self.told if at >= after and end - at > 20]


def test_evaluation_and_phases_of_other_speeds_count_in_what_is_left_of_a_run() -> None:
    run = Simulated([1.0] * 5, steps=60, row=40, slower=lambda at: 1.0)
    first_task = 40 + 5 + 60 + 6 + 1 + 4
    found = run.factors(after=first_task)
    assert len(found) > 500
    assert 0.9 < min(found) <= max(found) < 1.1
    # In the first task the fast phases are not known yet, and what a task does besides its steps.
    assert max(run.factors(after=60)) < 4


def test_larger_tasks_to_come_take_longer() -> None:
    run = Simulated([1.0, 2.0, 4.0, 1.0], steps=60, row=40, slower=lambda at: 1.0)
    found = run.factors(after=40 + 76 + 60)
    assert 0.85 < min(found) <= max(found) < 1.15


EPOCHS, STEPS = TrainingConfig(epochs=2), TrainingConfig(steps=9)
ALL_BESIDE = {"replay": {"kind": "all", "share": None, "beside": True}}


@pytest.mark.parametrize(
    ("training", "settings", "expected"),
    [
        (EPOCHS, {}, [10, 20, 30]),
        (STEPS, {}, [1, 1, 1]),
        (STEPS, {"budget": "cumulative"}, [1, 2, 3]),
        (EPOCHS, {"budget": "cumulative"}, [10, 40, 90]),
        (EPOCHS, ALL_BESIDE, [10, 30, 60]),
        (STEPS, ALL_BESIDE, [1, 1, 1]),
        (EPOCHS, {"replay": {"kind": "reservoir", "share": 0.5, "beside": True}}, [10, 40, 60]),
        (EPOCHS, {"replay": {"kind": "equal", "times": 1, "share": None, "beside": True}}, [10, 30, 50]),
        (EPOCHS, {"replay": {"kind": "all", "share": None}}, [10, 20, 30]),
    ],
)
def test_a_budget_that_grows_makes_later_tasks_longer(
    training: TrainingConfig, settings: dict[str, Any], expected: list[float]
) -> None:
    tasks = [SimpleNamespace(train=range(rows)) for rows in (10, 20, 30)]
    assert sizes_of(tasks, training, SlotSettings(**settings)) == pytest.approx(expected)  # type: ignore[arg-type]


def test_an_oracle_takes_as_long_as_was_told_after_its_first_task() -> None:
    tasks = [SimpleNamespace(train=range(8)) for _ in range(5)]
    sizes = sizes_of(tasks, STEPS, SlotSettings(budget="cumulative"))  # type: ignore[arg-type]
    run = Simulated(sizes, steps=60, row=40, slower=lambda at: 1.0)
    found = run.factors(after=40 + 76 + 60)
    assert 0.85 < min(found) <= max(found) < 1.3


def test_a_machine_that_becomes_busy_is_noticed() -> None:
    run = Simulated([1.0] * 6, steps=60, row=40, slower=lambda at: 3.0 if at > 300 else 1.0)
    # A minute after the change steps are known to be slow, after the next row rows are, too.
    assert 0.85 < min(run.factors(after=600)) <= max(run.factors(after=600)) < 1.15


def test_a_machine_that_stutters_gives_an_estimate_that_does_not_jump() -> None:
    run = Simulated([1.0] * 6, steps=60, row=40, slower=lambda at: 2.0 if at // 10 % 2 else 0.5)
    found = run.factors(after=150)
    assert 0.65 < min(found) <= max(found) < 1.5


def test_nothing_is_told_that_nothing_is_known_of() -> None:
    time_left = TimeLeft([1.0, 1.0], time := Time())
    assert (time_left.run_left(), time_left.row_left()) == (None, None)
    time_left.begin_row(-1)
    assert time_left.run_left() is None
    time_left.end_row()
    time_left.begin_task(0, [("train", 10)])
    assert (time_left.task_left(), time_left.run_left()) == (None, None)
    for done in (1, 2):
        time.spend(3)
        time_left.step(0, done)
    assert time_left.task_left() == pytest.approx(24)


def test_a_task_that_is_gone_on_with_counts_no_time_of_other_processes() -> None:
    time = Time()
    time_left = TimeLeft([1.0, 1.0], time)
    time_left.use_earlier_rows(2, 60)
    time_left.begin_task(0, [("train", 100)], resumed=True)
    for done in range(90, 101):
        time_left.step(0, done)
        time.spend(1)
    assert time_left.run_left() == pytest.approx(30 + 100 + 30)
    time_left.end_task()
    time_left.begin_row(0)
    assert time_left.run_left() == pytest.approx(30 + 100 + 30)


# -- a run ----------------------------------------------------------------------------------------------------


class Recorder:
    """Stands in for a run, with a simulated clock."""

    def __init__(self) -> None:
        self.time, self.stream = Time(), io.StringIO()
        self.progress = Progress(stream=self.stream, now=self.time, every=0)
        self.time_left = TimeLeft([1.0], self.time)


def test_steps_of_later_phases_and_repeats_go_on_counting() -> None:
    phases = [
        Phase("train", {}, steps=4, repeats=2),
        Phase("selector", {}, steps=3, optimiser="adam"),
        Phase("sums", {}, steps=2),
    ]
    run, cursor = Recorder(), Cursor()
    watcher = TaskProgress(cursor, phases, TrainingConfig(steps=1))
    assert watcher.steps == [("train", 8), ("selector", 3), ("sums", 2)]
    run.progress.start("task", watcher.total)
    run.time_left.begin_task(0, watcher.steps)
    for phase, repeat, count, seconds in ((0, 0, 4, 10.0), (0, 1, 4, 10.0), (1, 0, 3, 1.0), (2, 0, 2, 1.0)):
        cursor.phase, cursor.repeat = phase, repeat
        for step in range(count):
            run.time.spend(seconds)
            watcher.show(StepLog(step, {}, 1.0, None, 5), run.progress, run.time_left)
    shown = [line.removeprefix("task: ").split("  ") for line in lines(run.stream)[1:]]
    assert [words[0] for words in shown] == [f"{done}/13" for done in range(1, 14)]
    assert shown[3][1:] == ["loss 0.000", "10.0 s/step", "phase 1/3 train", "1:30 left"]
    assert shown[9][2:] == ["5.0 samples/s", "phase 2/3 selector", "0:03 left"]
    cursor.phase, cursor.repeat, cursor.step = 0, 1, 3
    assert watcher.before + watcher.inside(cursor.step) == 7


def test_a_phase_that_solves_something_shows_no_loss(micro_config: Callable[..., Any]) -> None:
    stream = io.StringIO()
    Run.of(
        micro_config("classes", "method=rail", "scenario.per_task=2"), Progress(stream=stream, every=0)
    ).execute()
    steps = [line for line in lines(stream) if line.startswith("task 1/") and "left" in line]
    assert steps
    assert not any("loss" in line for line in steps)


def test_a_run_shows_every_phase_of_experts_with_a_selector(micro_config: Callable[..., Any]) -> None:
    stream = io.StringIO()
    settings = ("method=moe-adapters", "method.selector={kind: autoencoder, steps: 5}", "scenario.per_task=2")
    Run.of(micro_config("classes", *settings), Progress(stream=stream, every=0)).execute()
    second = [line for line in lines(stream) if line.startswith("task 2/") and " left" in line]
    done = [int(line.split(": ")[1].split("/")[0]) for line in second]
    assert done == list(range(1, done[-1] + 1))
    assert second[-1].split(": ")[1].startswith(f"{done[-1]}/{done[-1]}  ")
    assert any("phase 2/3 selector" in line for line in second)
    assert all("run " in line for line in second), "evaluation and the tasks to come are known by then"


def test_messages_count_tasks_as_progress_does(micro_config: Callable[..., Any], tmp_path: Path) -> None:
    stream = io.StringIO()
    config = micro_config("classes", "training.lr=1e30", "training.clip_norm=null", "scenario.per_task=2")
    with pytest.raises(DivergedError, match=r"^task 1, phase"):
        Run.of(config, Progress(stream=stream)).execute()
    assert [line for line in lines(stream) if line.startswith("task 1/")]
