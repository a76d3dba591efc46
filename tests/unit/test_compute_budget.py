"""A budget in multiply-accumulates: counted by running a step, the same for all methods, and it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import everclip
from everclip.config import TrainingConfig
from everclip.contracts import Phase, Source, Stream, Task
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.running.prepare import prepare
from everclip.scenarios.load import load_scenario
from everclip.training.budget import _rounded_up, macs_of, phase_steps, within_macs
from everclip.training.trial import count_macs, macs_in
from everclip.training.watching import Cursor
from micro import MODEL

BUDGET = 2e8


def learner_of(folder: Path, method: str = "finetune", **settings: Any) -> Learner:
    training = {"macs": BUDGET, "batch_size": 8, "threads": 1, "device": "cpu"}
    return Learner.create(str(folder / "model"), method, training, **settings)


@pytest.fixture
def tasks(micro_config: Callable[..., Any]) -> list[Task]:
    return list(load_scenario(micro_config("time").scenario).tasks)


def begun(learner: Learner, task: Task) -> tuple[list[Phase], Cursor]:
    cursor = Cursor()
    learner.begin(task, cursor)
    return learner.plan(task, cursor), cursor


def tower_macs(cfg: dict[str, Any], tokens: int) -> int:
    """Return the products of a transformer's blocks for one sample: qkv, output, two of attention, the MLP."""
    width = cfg["width"]
    linear = (4 * width**2 + 2 * int(cfg["mlp_ratio"] * width) * width) * tokens
    return int(cfg["layers"] * (linear + 2 * tokens**2 * width))


def test_counts_are_those_of_a_formula(micro_folder: Path) -> None:
    backbone = Learner.create(str(micro_folder / "model")).method.backbone
    vision, text, out = MODEL["vision_cfg"], MODEL["text_cfg"], MODEL["embed_dim"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    first = patches * 3 * vision["patch_size"] ** 2 * vision["width"]
    image = first + tower_macs(vision, patches + 1) + vision["width"] * out
    pixels = torch.zeros(3, 3, vision["image_size"], vision["image_size"])
    with torch.no_grad():
        assert macs_in(lambda: backbone.encode_image(pixels)) == 3 * image
        tokens = backbone.tokenise(["a", "b"])
        expected = 2 * (tower_macs(text, text["context_length"]) + text["width"] * out)
        assert macs_in(lambda: backbone.encode_text(tokens)) == expected
    # A backward pass costs twice a forward pass, but for the first layer (no gradient of the pixels), and for the
    # attention, which computes its scores again.
    attention = 2 * (patches + 1) ** 2 * vision["width"] * vision["layers"]
    backward = 2 * (image - first - attention) + first + 2.5 * attention
    assert macs_in(lambda: backbone.encode_image(pixels).sum().backward()) == 3 * (image + backward)


def test_a_teacher_takes_steps_from_the_same_budget(micro_folder: Path, tasks: list[Task]) -> None:
    task = tasks[0]
    plain, of_plain = begun(learner_of(micro_folder), task)
    taught, of_taught = begun(learner_of(micro_folder, "lwf-tic"), task)
    assert of_plain.macs["train"] < of_taught.macs["train"] < 1.6 * of_plain.macs["train"]
    config = TrainingConfig(macs=BUDGET)
    for phases, cursor in ((plain, of_plain), (taught, of_taught)):
        spent = macs_of(phases, config, cursor.macs)
        assert BUDGET - cursor.macs["train"] < spent <= BUDGET, "the budget is used up to one step"
    assert phase_steps(taught[0], config) < phase_steps(plain[0], config)


def test_counting_changes_neither_weights_nor_what_trains(micro_folder: Path, tasks: list[Task]) -> None:
    learner, task = learner_of(micro_folder), tasks[0]
    learner.method.begin_task(task, learner.past())
    before = {name: tensor.clone() for name, tensor in learner.method.state_dict().items()}
    trains = [p.requires_grad for p in learner.method.parameters()]
    count_macs(learner.engine, learner.method, learner.plan(task))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.method.state_dict().items())
    assert [p.requires_grad for p in learner.method.parameters()] == trains
    assert all(p.grad is None for p in learner.method.parameters())


def test_a_counted_run_learns_the_same_and_says_what_it_computed(micro_config: Callable[..., Any]) -> None:
    plain = everclip.execute(micro_config("time", "training.steps=2", output="plain"))
    config = micro_config("time", "training.steps=2", "training.count_macs=true", output="counted")
    counted = everclip.execute(config)
    assert counted.rows == plain.rows
    tasks = counted.cost["macs_of_tasks"]
    assert [entry["task"] for entry in tasks] == [task.name for task in counted.tasks]
    assert all(entry["macs"] == 2 * entry["per_step"]["train"] for entry in tasks)
    assert counted.cost["macs"] == sum(entry["macs"] for entry in tasks)
    assert "macs" not in plain.cost


def test_counting_does_not_change_which_experts_are_used(micro_folder: Path, tasks: list[Task]) -> None:
    """Experts count the samples that they received in every forward pass, outside of parameters and buffers."""
    counted = []
    for count in (False, True):
        training = {"steps": 2, "batch_size": 8, "threads": 1, "device": "cpu", "count_macs": count}
        learner = Learner.create(
            str(micro_folder / "model"), "moe-adapters", training, experts={"count": 4, "width": 4}
        )
        learner.learn(tasks[0])
        counted.append(learner.method.state_dict())
    assert counted[0].keys() == counted[1].keys()
    assert all(torch.equal(tensor, counted[1][name]) for name, tensor in counted[0].items())


def test_what_a_teacher_does_once_per_phase_is_no_part_of_a_step(
    micro_folder: Path, tasks: list[Task]
) -> None:
    plain = begun(learner_of(micro_folder), tasks[0])[1].macs["train"]
    taught = begun(learner_of(micro_folder, "lwf-vr"), tasks[0])[1].macs["train"]
    assert plain < taught < 3 * plain, "before, its bank of sentences made a step twenty times as expensive"


def test_a_budget_too_small_for_a_step_says_what_is_needed(micro_folder: Path, tasks: list[Task]) -> None:
    def learn(macs: float) -> Learner:
        training = {"macs": macs, "batch_size": 8}
        learner = Learner.create(str(micro_folder / "model"), training=training)
        learner.learn(tasks[0])
        return learner

    with pytest.raises(
        ConfigError, match=r"do not allow one step of phase 'train'.*needs at least"
    ) as caught:
        learn(10.0)
    learn(float(str(caught.value).split("at least ")[1].rstrip(".")))


@pytest.mark.parametrize(
    ("count", "text"), [(2.941e9, "2.95e+09"), (2.94e9, "2.94e+09"), (9.999e9, "1e+10"), (7.0, "7")]
)
def test_what_is_needed_is_rounded_up(count: float, text: str) -> None:
    assert _rounded_up(count) == text


def test_phases_with_steps_of_their_own_come_first(tasks: list[Task]) -> None:
    def phase(name: str, **more: Any) -> Phase:
        return Phase(name, {"main": Stream((Source(tasks[0].train),), 4)}, **more)

    config = TrainingConfig(macs=1000)
    phases = within_macs(
        [phase("own", steps=10), phase("a"), phase("b")], config, {"own": 20, "a": 10, "b": 40}
    )
    assert [p.steps for p in phases] == [10, 40, 10], "(1000 - 200) / 2 for each"
    with pytest.raises(ConfigError, match=r"at least 1\.01e\+03"):
        within_macs([phase("own", steps=50), phase("a")], config, {"own": 20, "a": 10})


def test_budgets_grow_as_published(micro_folder: Path, tasks: list[Task]) -> None:
    """TiC-CLIP's oracle spends t budgets at step t, 28 for seven steps; all other ways one."""
    assert len(tasks) >= 3
    for method, expected in (("oracle", [1, 2, 3]), ("restart", [1, 1, 1]), ("cumulative-exp", [1, 1, 1])):
        learner = Learner.create(str(micro_folder / "model"), method, {"steps": 5, "batch_size": 8})
        steps = []
        for number, task in enumerate(tasks[:3]):
            steps.append(phase_steps(learner.plan(task)[0], learner.training))
            learner.tasks.append(task)
            learner.learned.add(number)
        assert steps == [5 * n for n in expected], method


def test_a_method_that_spends_more_than_a_budget_says_so(micro_config: Callable[..., Any]) -> None:
    def said(*own: str) -> list[str]:
        return [message for kind, message in prepare(micro_config("time", *own)).remarks if kind == "budget"]

    (line,) = said("method=oracle")
    assert "oracle spends t budgets on the t-th task: 6 over the 3 tasks" in line
    assert "other methods spend 3" in line
    assert said("method=oracle", "method.budget=constant") == said("method=restart") == said() == []
