"""Schedules, budgets, optimiser state, progress, trackers, signals."""

import io
import math
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import tracking
from torch import nn

import everclip
from everclip.config import TrainingConfig, resolve_config
from everclip.contracts import ParamGroup, Phase, Source, Stream
from everclip.data.table import Table
from everclip.errors import ConfigError, Interrupted
from everclip.training.budget import phase_steps
from everclip.training.optim import build_optimiser, load_optimiser, optimiser_tensors, set_rate
from everclip.training.processes import start_processes
from everclip.training.progress import Progress, clock
from everclip.training.schedules import learning_rate, resolve
from everclip.training.signals import StopRequest
from everclip.training.trackers import Trackers

# -- schedules ------------------------------------------------------------------------------------------------


def rates(steps: int, schedule: str, **settings: float) -> list[float]:
    return [learning_rate(step, steps, 1.0, schedule, **settings) for step in range(steps)]


def test_warm_up_is_linear_and_reaches_the_base_rate() -> None:
    for schedule in ("cosine", "constant", "constant-cooldown"):
        found = rates(10, schedule, warmup=4)
        assert found[:4] == [0.25, 0.5, 0.75, 1.0]
        assert max(found) == 1.0


def test_cosine_falls_from_the_base_rate_towards_nothing() -> None:
    found = rates(10, "cosine")
    assert found == pytest.approx([(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)])
    assert found == sorted(found, reverse=True)


def test_cooldown_falls_linearly_at_the_end_only() -> None:
    assert rates(10, "constant-cooldown", cooldown=4) == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])


@pytest.mark.parametrize(("amount", "steps"), [(0, 0), (0.1, 5), (0.5, 25), (1, 1), (7, 7), (1.0, 1)])
def test_an_amount_below_one_is_a_share(amount: float, steps: int) -> None:
    assert resolve(amount, 50) == steps


@pytest.mark.parametrize("schedule", ["cosine", "constant", "constant-cooldown"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_no_schedule_fails_where_warm_up_or_cooldown_fill_it(schedule: str, steps: int) -> None:
    for warmup, cooldown in ((0, 0), (steps, steps), (steps + 3, steps + 3), (0.9, 0.9)):
        assert all(0 < r <= 1 for r in rates(steps, schedule, warmup=warmup, cooldown=cooldown))


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="'linear'"):
        learning_rate(5, 10, 1.0, "linear")


# -- budget ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "steps"),
    [({"steps": 7}, 7), ({"samples": 17}, 5), ({"samples": 16}, 4), ({"epochs": 1}, 3), ({"epochs": 2.5}, 7),
     ({"epochs": 0}, 0), ({"steps": 0}, 0)],
)  # fmt: skip
def test_budgets_become_steps(table: Callable[..., Table], budget: dict[str, float], steps: int) -> None:
    config = TrainingConfig(batch_size=4, **budget)  # type: ignore[arg-type]
    sources = (Source(table(10), 0.5), Source(table(1000, "old"), 0.5))
    assert phase_steps(Phase("train", {"main": Stream(sources, 4)}), config) == steps
    assert phase_steps(Phase("train", {"main": Stream(sources, 4)}, steps=3), config) == 3


# -- optimisers -----------------------------------------------------------------------------------------------


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))


def phase(**settings: Any) -> Phase:
    groups = (ParamGroup(("0.weight",), lr_scale=0.5), ParamGroup(("0.bias", "1.weight"), weight_decay=0.0))
    return Phase("train", {}, groups, **settings)


def step(module: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimiser.zero_grad()
    module(torch.randn(8, 4)).square().sum().backward()
    optimiser.step()


@pytest.mark.parametrize(
    "settings",
    [{"optimiser": "adamw"}, {"optimiser": "sgd"}, {"optimiser": "sgd", "momentum": 0.0},
     {"optimiser": "sgd", "nesterov": True}],
)  # fmt: skip
def test_the_state_makes_the_next_step_the_same(settings: dict[str, Any]) -> None:
    config = TrainingConfig(steps=1, lr=0.1, **settings)
    one, two = toy(), toy()
    first = build_optimiser(one, phase(), config)
    for seed in range(3):
        step(one, first, seed)
    two.load_state_dict(one.state_dict())
    second = build_optimiser(two, phase(), config)
    stored = {k: v.clone() for k, v in optimiser_tensors(first).items()}
    load_optimiser(second, stored)
    for seed in (7, 8):
        step(one, first, seed)
        step(two, second, seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    if settings.get("momentum") != 0.0:
        fresh = toy()
        fresh.load_state_dict(two.state_dict())
        step(fresh, build_optimiser(fresh, phase(), config), 9)
        step(two, second, 9)
        moved = [torch.equal(a, b) for a, b in zip(fresh.parameters(), two.parameters(), strict=True)]
        assert not all(moved), "the state made no difference, so this test shows nothing"


def test_groups_keep_their_factor_and_decay() -> None:
    optimiser = build_optimiser(toy(), phase(), TrainingConfig(steps=1, weight_decay=0.3))
    set_rate(optimiser, 0.2)
    assert [(g["lr"], g["weight_decay"]) for g in optimiser.param_groups] == [(0.1, 0.3), (0.2, 0.0)]


def test_a_phase_may_name_its_own_optimiser() -> None:
    config = TrainingConfig(steps=1, optimiser="adamw")
    assert isinstance(build_optimiser(toy(), phase(), config), torch.optim.AdamW)
    assert isinstance(build_optimiser(toy(), phase(optimiser="sgd"), config), torch.optim.SGD)


# -- processes ------------------------------------------------------------------------------------------------


def test_a_device_or_precision_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"training\.device: 'cuda'"):
        start_processes(TrainingConfig(steps=1, device="cuda"))
    with pytest.raises(ConfigError, match=r"training\.precision: fp16 needs a GPU"):
        start_processes(TrainingConfig(steps=1, precision="fp16"))


def test_a_process_works_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from everclip.training import processes

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(processes, "Accelerator", lambda cpu: SimpleNamespace(device=torch.device("cpu")))
    processes._accelerator.cache_clear()
    try:
        # accelerate goes on where it was, or where its launcher said, without a word
        with pytest.raises(ConfigError, match="already uses 'cpu'"):
            start_processes(TrainingConfig(steps=1, device="cuda"))
        assert start_processes(TrainingConfig(steps=1, device="auto")).device.type == "cpu"
        with pytest.raises(ConfigError, match="fp16 needs a GPU"):
            start_processes(TrainingConfig(steps=1, device="auto", precision="fp16"))
    finally:
        processes._accelerator.cache_clear()


# -- progress -------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_progress_is_plain_lines() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream, every=0.0)
    progress.start("task 1/2", 4, done=1)
    for done in (2, 3, 4):
        progress.update(done, f"loss {done}")
    progress.finish()
    progress.say("a note")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "task 1/2: 3 steps"
    assert [line.split("  ")[:2] for line in lines[1:4]] == [
        [f"task 1/2: {i}/4", f"loss {i}"] for i in (2, 3, 4)
    ]
    assert all(line.endswith(" left") for line in lines[1:4])
    assert lines[4:] == ["a note"]
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_without_a_terminal_a_short_stage_is_one_line() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream, every=10.0)
    progress.start("short", 100)
    for done in range(1, 101):
        progress.update(done)
    assert stream.getvalue() == "short: 100 steps\n"


def test_on_a_terminal_one_line_is_rewritten() -> None:
    stream = Terminal()
    progress = Progress(stream=stream)
    progress.start("task", 2)
    progress.update(2)
    progress.finish()
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().count("\r") == 2


def test_quiet_is_silent() -> None:
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(quiet=True, stream=stream, every=0.0)
        progress.start("task", 2)
        progress.update(2)
        progress.finish()
        progress.say("note")
        assert stream.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3723, "1:02:03"), (-5, "0:00")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


# -- trackers and signals -------------------------------------------------------------------------------------


def test_an_unknown_tracker_is_answered_with_close_names() -> None:
    with pytest.raises(
        ConfigError, match=r"trackers: 'tensorbord' is not known\. Did you mean 'tensorboard'"
    ):
        Trackers(resolve_config("emoji-time", ["trackers=[tensorbord]"]))


def test_no_tracker_is_no_trouble() -> None:
    for trackers in (Trackers(None), Trackers(resolve_config("emoji-time"))):
        trackers.log({"loss": 1.0}, 1)
        trackers.finish()


def test_a_signal_stops_at_the_next_safe_place_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_interrupt_stops_at_once() -> None:
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_tracker_records_numbers(micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Recorder:
        requires_logging_directory = False

        name = "recorder"

        def __init__(self, name: str) -> None:
            self.started = False

        def start(self) -> None:
            self.started = True

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            assert self.started

        def log(self, values: dict[str, float], step: int) -> None:
            assert self.started
            seen.extend(values)

        def finish(self) -> None:
            seen.append("finished")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    everclip.execute(micro_config("single", "trackers=[recorder]", "training.steps=2"))
    assert {"contrastive", "lr", "row/last", "finished"} <= set(seen)
