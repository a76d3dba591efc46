"""The model and the optimiser that a task begins with: TiC-CLIP's ways of going on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from everclip.contracts import Task
from everclip.errors import ConfigError
from everclip.learner import Learner, learnable
from everclip.scenarios.load import load_scenario
from everclip.training.watching import Cursor, StepLog, Watcher

STEPS = 4


@pytest.fixture
def tasks(micro_config: Callable[..., Any]) -> list[Task]:
    return list(load_scenario(micro_config("time").scenario).tasks)


def learner_of(
    folder: Path, method: str = "finetune", training: dict[str, Any] | None = None, **more: Any
) -> Learner:
    given = {"steps": STEPS, "batch_size": 8, "lr": 1e-3, "threads": 1, "device": "cpu"} | (training or {})
    return Learner.create(str(folder / "model"), method, given, **more)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.method.backbone.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_initial_begins_every_task_with_the_start_model(micro_folder: Path, tasks: list[Task]) -> None:
    learner = learner_of(micro_folder, "finetune", start="initial")
    start = weights(learner)
    learner.learn(tasks[0])
    assert not same(start, weights(learner))
    learner.begin(tasks[1], Cursor())
    assert same(start, weights(learner))


def test_random_draws_weights_by_seed_and_task(micro_folder: Path, tasks: list[Task]) -> None:
    found = []
    for seed in (0, 0, 1):
        learner = learner_of(micro_folder, "finetune", start="random")
        learner.method.seed = seed
        for task in tasks[:2]:
            learner.method.begin_task(task, learner.past())
            found.append(weights(learner))
    (first, second), (again, _), (other, _) = found[:2], found[2:4], found[4:]
    assert same(first, again)
    assert not same(first, second), "each task draws its own"
    assert not same(first, other), "each seed draws its own"


def test_random_needs_both_towers(micro_folder: Path) -> None:
    with pytest.raises(ConfigError, match="`random` needs both towers to train"):
        learner_of(micro_folder, "finetune", start="random", trainable=["image"])


def test_a_restarted_model_goes_on_from_a_checkpoint(
    micro_folder: Path, tasks: list[Task], tmp_path: Path
) -> None:
    whole = learner_of(micro_folder, "finetune", start="initial")
    for task in tasks[:3]:
        whole.learn(task)
    first = learner_of(micro_folder, "finetune", start="initial")
    first.learn(tasks[0])
    first.save(tmp_path / "saved")
    loaded = Learner.load(tmp_path / "saved")
    for task in tasks[1:3]:
        loaded.learn(task)
    assert same(weights(whole), weights(loaded))


def test_the_check_before_a_task_reads_no_earlier_task(
    micro_folder: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time step must not cost more with every time step before it."""
    read: list[str] = []
    plain = learnable._compared
    monkeypatch.setattr(
        learnable, "_compared", lambda task, *more: read.append(task.name) or plain(task, *more)
    )
    learner = learner_of(micro_folder, "cumulative-exp", training={"steps": 1})
    for task in tasks:
        learner.learn(task)
    assert read == [task.name for task in tasks]


# -- the learning rate --------------------------------------------------------------------------------------------


class Rates(Watcher):
    """Notes the learning rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def report(self, logs: Sequence[StepLog]) -> None:
        self.seen += [log.lr for log in logs]


def rates(learner: Learner, task: Task) -> list[float]:
    watcher = Rates()
    learner.learn(task, watcher=watcher)
    return watcher.seen


WARM, HIGHEST = [5e-4, 1e-3, 1e-3, 1e-3], [1e-3] * STEPS
"""Two steps of warm-up, then the highest rate; and no warm-up."""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rewarm": True}, (WARM, WARM)),
        ({"rewarm": False}, (WARM, HIGHEST)),
        ({"rewarm": False, "start": "initial"}, (WARM, WARM)),
    ],
    ids=["rewarm", "not", "not, from other weights"],
)
def test_the_first_task_that_is_trained_has_a_warm_up(
    micro_folder: Path, tasks: list[Task], settings: dict[str, Any], expected: tuple[list[float], ...]
) -> None:
    """Whatever its number is: a learner may begin with the second task of a stream."""
    training = {"warmup": 2, "schedule": "constant", "rewarm": settings["rewarm"]}
    learner = learner_of(micro_folder, training=training, start=settings.get("start", "previous"))
    assert [rates(learner, task) for task in tasks[1:3]] == [pytest.approx(of) for of in expected]


def test_a_loaded_learner_has_trained_a_task(micro_folder: Path, tasks: list[Task], tmp_path: Path) -> None:
    training = {"warmup": 2, "schedule": "constant", "rewarm": False}
    learner = learner_of(micro_folder, training=training)
    learner.learn(tasks[0])
    learner.save(tmp_path / "saved")
    assert rates(Learner.load(tmp_path / "saved"), tasks[1]) == pytest.approx(HIGHEST)


# -- the optimiser ------------------------------------------------------------------------------------------------


def test_carried_moments_make_two_tasks_one(
    micro_folder: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With constant rate and the same batches, two tasks of n steps with carried moments end like one of 2 n steps."""

    def learn(carry: bool, parts: int) -> dict[str, torch.Tensor]:
        training = {
            "schedule": "constant",
            "warmup": 0,
            "steps": 2 * STEPS // parts,
            "carry_optimiser": carry,
        }
        learner = learner_of(micro_folder, training=training)
        maker = learner.engine.maker
        batch = maker.batch(learner.plan(tasks[0])[0].streams["main"], "fixed", 0)
        monkeypatch.setattr(
            type(maker), "batches", lambda *given: repeat({"main": batch}, given[4] - given[3])
        )
        for number in range(parts):
            learner.learn(tasks[number])
        return weights(learner)

    whole = learn(False, 1)
    assert same(whole, learn(True, 2))
    assert not same(whole, learn(False, 2))


def test_moments_of_discarded_weights_are_refused(micro_folder: Path) -> None:
    with pytest.raises(ConfigError, match="the moments belong to"):
        learner_of(micro_folder, "restart", {"carry_optimiser": True})


@pytest.mark.parametrize(
    "settings",
    [{"penalties": {"lwf": {}}}, {"merge": {"kind": "wise-ft"}}, {"penalties": {"weight-constraint": {}}}],
)
def test_a_discarded_model_is_no_reference(micro_folder: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="would hold to the wrong model"):
        learner_of(micro_folder, "finetune", start="initial", **settings)
    (name,) = settings
    inner = settings[name]
    named = (
        {**inner, "reference": "initial"} if name == "merge" else {k: {"reference": "initial"} for k in inner}
    )
    learner_of(micro_folder, "finetune", start="initial", **{name: named})


def test_moments_are_carried_where_modules_grow(micro_folder: Path, tasks: list[Task]) -> None:
    """Parameters that change their shape begin anew; before, AdamW missed half of their state."""
    training = {"carry_optimiser": True, "steps": 2}
    for method in ("cll-clip", "moe-adapters"):
        learner = learner_of(micro_folder, method, training)
        for task in tasks[:2]:
            learner.learn(task)


def test_moments_are_carried_through_a_checkpoint(
    micro_folder: Path, tasks: list[Task], tmp_path: Path
) -> None:
    training = {"carry_optimiser": True}
    whole = learner_of(micro_folder, training=training)
    whole.learn(tasks[0])
    whole.save(tmp_path / "saved")
    loaded = Learner.load(tmp_path / "saved")
    for learner in (whole, loaded):
        learner.learn(tasks[1])
    assert same(weights(whole), weights(loaded))
    assert whole.engine.carried.keys() == loaded.engine.carried.keys() == {"train"}
