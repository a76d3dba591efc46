"""What training needs is estimated before it starts, compared with what the device has, and shared by processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from everclip.contracts import ParamGroup, Phase, Stream
from everclip.errors import ConfigError
from everclip.learner import Learner, memory_check
from everclip.learner.memory_check import need_of
from everclip.run import Run
from everclip.scenarios.load import load_scenario
from everclip.training import memory_need
from everclip.training.memory_need import MemoryNeed, memory_of_process, require_memory
from everclip.training.peak import peak_of
from everclip.training.progress import Progress
from everclip.training.trial import measure_peaks

CPU = torch.device("cpu")
NEED = MemoryNeed(weights=1e9, moments=2e9, gradients=1e9, step=(0.0, 1e7, 1e3), batch=700)


def test_the_peak_counts_what_lives_at_the_same_time() -> None:
    def act() -> None:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1
        view = second.view(10, 100)  # no memory of its own
        del first, second
        third = torch.zeros(500)  # 2,000: the view still holds 4,000
        view.add_(1)  # in place
        del view, third
        torch.zeros(1500)

    assert peak_of(act) == 8000


def test_the_peak_counts_gradients_and_what_the_backward_pass_keeps() -> None:
    weight = torch.nn.Parameter(torch.ones(100))
    inputs = torch.ones(50, 100)

    def act() -> None:
        (weight * inputs).exp().sum().backward()  # type: ignore[no-untyped-call]

    # exp keeps its result; the product is freed, but lives beside it for a moment; in the backward pass, the gradients
    # of both live at a time.
    both = peak_of(act)
    assert 2 * 20_000 <= both <= 3 * 20_000 + 2_000
    weight.grad = None
    assert peak_of(act, [weight]) <= both


def test_the_largest_batch_is_the_last_that_fits() -> None:
    for memory in (3.5e9, 8e9, 11.3e9, 80e9):
        found = NEED.largest(memory)
        fits = NEED.at(found) <= memory
        assert fits == (memory > 5e9)  # 1 + 2 for the model, 2 for the update, before the first sample
        assert found == 0 or NEED.at(found + 1) > memory


def test_too_little_memory_is_refused_with_the_batch_that_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    # 7 GB are free, and 1 GB is held by the weights already, which are part of the need.
    monkeypatch.setattr(memory_need, "available_memory", lambda: int(7e9))
    assert memory_of_process(NEED, CPU) == 8e9
    with pytest.raises(
        ConfigError, match=r"needs about 10 GB; batch 477 would fit 8 GB; lower training.batch_"
    ):
        require_memory(NEED, 8e9, 1)
    # Two processes of one machine have half of what is free each, and the batch is that of both.
    assert memory_of_process(NEED, CPU, sharing=2) == 4.5e9
    with pytest.raises(ConfigError, match=r"batch 954 would fit 8 GB"):
        require_memory(NEED, 8e9, 2)
    assert "may fail" in str(require_memory(NEED, 8e9, 1, refuses=False))
    assert "nearly all" in str(require_memory(NEED, 11e9, 1))
    assert require_memory(NEED, 20e9, 1) is None
    assert require_memory(NEED, None, 1) is None
    monkeypatch.setattr(memory_need, "available_memory", lambda: None)
    assert memory_of_process(NEED, CPU) is None


@pytest.mark.parametrize("setting", ["refuse", "warn", "none"])
def test_the_process_with_the_least_memory_decides_for_all(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process has enough by itself, except one that this one only hears of."""
    heard: list[Any] = []

    def gathered(value: Any) -> list[Any]:
        heard.append(value)
        return [value, False if isinstance(value, bool) else (NEED, 8e9)]

    said: list[str] = []
    engine: Any = SimpleNamespace(
        config=SimpleNamespace(memory_check=setting),
        accelerator=SimpleNamespace(num_processes=2, device=CPU),
        say=said.append,
    )
    phase: Any = SimpleNamespace(optimiser="default")
    monkeypatch.setattr(memory_check, "gather_objects", gathered)
    monkeypatch.setattr(memory_check, "surely_fits", lambda *given: True)
    monkeypatch.setattr(memory_check, "need_of", lambda *given: NEED)
    monkeypatch.setattr(memory_check, "stored_bytes", lambda method: 0.0)
    monkeypatch.setattr(memory_need, "available_memory", lambda: int(80e9))
    method: Any = None
    if setting == "refuse":
        with pytest.raises(ConfigError, match=r"batch 954 would fit 8 GB.*memory_check=warn"):
            memory_check.check_memory(engine, method, [phase])
    else:
        memory_check.check_memory(engine, method, [phase])
    assert heard == ([] if setting == "none" else [True, (NEED, 81e9)])
    assert ["may fail" in note for note in said] == ([True] if setting == "warn" else [])


def learner_of(folder: Path, **training: Any) -> Learner:
    given = {"steps": 2, "batch_size": 16, "threads": 1, "device": "cpu", **training}
    return Learner.create(str(folder / "model"), "finetune", given)


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_need_of_each_of_32_processes(
    shard: bool, sigmoid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of a batch of 4096 is 128; softmax compares them with all 4096, sigmoid with 128 at a time."""
    monkeypatch.setattr(memory_need, "measure_peaks", lambda *given: [(4, 1400.0), (8, 1800.0)])
    module: Any = torch.nn.Linear(10, 10, bias=False)  # 100 values
    module.backbone = SimpleNamespace(chunk=None)
    engine: Any = SimpleNamespace(
        config=SimpleNamespace(optimiser="adamw", shard=shard), accelerator=SimpleNamespace(num_processes=1)
    )
    phase = Phase("train", {"main": Stream((), 4096)}, (ParamGroup(("weight",)),))
    need = memory_need.memory_need(engine, module, [phase], 5000.0, processes=32, sigmoid=sigmoid)
    assert need is not None
    parts = 32 if shard else 1
    assert (need.batch, need.moments, need.gradients) == (128, 800 / parts, 400 / parts)
    pairs = 32 * (128 * 128 if sigmoid else 128 * 4096)
    assert need.total == 5000 + 800 / parts + 1000 + 100 * 128 + pairs


@pytest.mark.slow
def test_the_estimate_of_a_batch_is_what_its_step_takes(
    micro_config: Callable[..., Any], micro_folder: Path
) -> None:
    task = load_scenario(micro_config("time").scenario).tasks[0]
    totals: dict[str, float] = {}
    for name, training in {"plain": {}, "recompute": {"recompute": True}, "chunk": {"chunk": 2}}.items():
        learner = learner_of(micro_folder, **training)
        learner.method.begin_task(task, learner.past())
        before = {k: v.clone() for k, v in learner.method.state_dict().items()}
        phases = learner.plan(task)
        need = need_of(learner.engine, learner.method, phases)
        assert need is not None
        ((_, whole),) = measure_peaks(learner.engine, learner.method, phases[0], (16,))
        constant, each, pairs = need.step
        # In chunks of this small model, gradients on their way count as activations of a sample.
        most = 1.3 if name == "chunk" else 1.1
        assert 0.9 * whole < constant + 16 * each + 256 * pairs < most * whole, name
        assert need.total == need.weights + need.moments + max(
            constant + 16 * each + 256 * pairs, 2 * need.gradients
        )
        assert all(torch.equal(v, before[k]) for k, v in learner.method.state_dict().items())
        assert not any(p.grad is not None for p in learner.method.parameters())
        totals[name] = whole
    assert totals["recompute"] < 0.8 * totals["plain"]
    assert totals["chunk"] < 0.8 * totals["plain"]


def test_a_run_that_needs_too_much_stops_before_its_first_step(
    micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_need, "available_memory", lambda: 10_000)
    run = Run.of(micro_config("time", "training.steps=1"), Progress(quiet=True))
    with pytest.raises(ConfigError, match="no batch fits"):
        run.execute()
    assert run.state.step == 0


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "refused"), [("refuse", True), ("warn", False)])
def test_a_plan_says_that_a_run_will_be_refused(
    command: Callable[..., tuple[int, str, str]],
    micro_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    refused: bool,
) -> None:
    monkeypatch.setattr(memory_need, "available_memory", lambda: 10_000)
    words = ["run", str(micro_folder / "time.yaml"), f"backbone={micro_folder / 'model'}", "training.steps=1"]
    words += [f"output={tmp_path / 'run'}", "training.device=cpu", f"training.memory_check={setting}"]
    code, out, err = command(*words, "--dry-run")
    assert code == 0, err
    assert ("the run will be refused (training.memory_check)" in out) == refused
    assert "a step needs about" in out


def test_a_plan_says_what_each_process_holds_sends_and_spends(
    command: Callable[..., tuple[int, str, str]], micro_folder: Path, tmp_path: Path
) -> None:
    words = ["run", str(micro_folder / "time.yaml"), f"backbone={micro_folder / 'model'}"]
    words += [
        f"output={tmp_path / 'run'}",
        "training.steps=1",
        "training.batch_size=8",
        "training.device=cpu",
    ]
    code, out, err = command(*words, "--dry-run", "--processes", "4", "--json")
    assert code == 0, err
    plan = json.loads(out)
    shared, trained = plan["processes"], plan["trainable_parameters"]
    assert (shared["count"], shared["samples_each"]) == (4, 2)
    assert shared["gradients_mb"] == pytest.approx(2 * 3 / 4 * 4 * trained / 1e6, abs=1e-3)
    width = Learner.create(str(micro_folder / "model")).method.backbone.embedding_width()
    # Two sides and their gradients, 3 of 4 parts, 8 rows; two keys of 8 bytes.
    expected = (4 * 3 / 4 * 4 * 8 * width + 2 * 2 * 3 / 4 * 8 * 8) / 1e6
    assert shared["embeddings_mb"] == pytest.approx(expected, abs=1e-3)
    assert 0 < shared["held_mb"] <= plan["memory"]["need_mb"]
    assert shared["computing_seconds"] >= 0
    code, out, _ = command(*words, "--dry-run", "--processes", "4")
    assert code == 0
    assert "on 4 processes, each with 2 of 8 samples" in out
    assert "a step needs about" in out
    for more, passes in (
        ("training.shard=true", 2),
        ("training.chunk=1", 6),
    ):  # two chunks of one sample, three passes
        words.append(more)
        code, out, err = command(*words, "--dry-run", "--processes", "4", "--json")
        assert code == 0, err
        sharded = json.loads(out)["processes"]
        assert sharded["gradients_mb"] == pytest.approx(shared["gradients_mb"] / 2, abs=1e-3)
        assert sharded["weights_mb"] == pytest.approx(passes * 3 / 4 * 4 * trained / 1e6, abs=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--processes", "3", "--dry-run"], "multiple of 3"), (["--processes", "2"], "only with --dry-run")],
)
def test_numbers_of_processes_that_cannot_be_planned_are_refused(
    words: list[str], message: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = command("run", "emoji-time", "training.batch_size=8", *words)
    assert code == 2
    assert message in err
