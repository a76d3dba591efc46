"""The slots: exactly what is named trains, merging and penalties do what their papers say, counts are counts."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import ClassEntry, LabelSpace, Past, Progress, Task
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.learner import Learner
from everclip.methods.base import HOOKS, Method
from everclip.methods.build import build_method
from everclip.methods.settings import MethodSettings, SlotSettings
from everclip.methods.slots import SlotMethod
from everclip.models.backbone import load_backbone
from everclip.models.modules.short_texts import needed_tokens
from everclip.training.budget import phase_steps

EXPECTED = {
    "image": lambda n: n.startswith("visual."),
    "text": lambda n: not n.startswith("visual.") and n != "logit_scale",
    "image-projection": lambda n: n == "visual.proj",
    "text-projection": lambda n: n == "text_projection",
    "image-layernorm": lambda n: n.startswith("visual.") and (".ln_" in n),
    "text-layernorm": lambda n: not n.startswith("visual.") and ("ln_" in n),
    "logit-scale": lambda n: n == "logit_scale",
}


@pytest.fixture
def build(micro_folder: Path) -> Callable[..., Method]:
    """Return a function (**settings) -> method on the micro model."""

    def make(name: str = "finetune", **settings: Any) -> Method:
        return build_method(
            MethodConfig(name=name, settings=settings), load_backbone(str(micro_folder / "model"))
        )

    return make


@pytest.fixture
def task(micro_folder: Path) -> Task:
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    return Task(0, "first", data.select(range(24)), data.select(range(24, 40)))


def learn(method: Method, *tasks: Task, **training: Any) -> Method:
    config = TrainingConfig(
        **{"steps": 3, "batch_size": 8, "lr": 1e-2, "warmup": 0, "device": "cpu", **training}
    )
    learner = Learner(method, config)
    for task in tasks:
        learner.learn(task)
    return method


def snapshot(method: Method) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in method.backbone.clip.state_dict().items()}


def moved(before: dict[str, torch.Tensor], method: Method) -> set[str]:
    return {k for k, v in snapshot(method).items() if not torch.equal(v, before[k])}


# -- trainable ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", EXPECTED)
def test_exactly_the_named_part_moves(build: Callable[..., Method], task: Task, part: str) -> None:
    method = build(trainable=[part])
    before = snapshot(method)
    learn(method, task)
    wanted = {name for name, _ in method.backbone.clip.named_parameters() if EXPECTED[part](name)}
    assert wanted
    assert moved(before, method) == wanted
    assert {
        n.removeprefix("backbone.clip.") for n, p in method.named_parameters() if p.requires_grad
    } == wanted
    count = sum(p.numel() for n, p in method.backbone.clip.named_parameters() if n in wanted)
    assert method.describe().trainable_parameters == count


def test_parts_add_up_and_by_default_everything_trains(build: Callable[..., Method], task: Task) -> None:
    method = build(trainable=["image-projection", "text-layernorm"])
    before = snapshot(method)
    learn(method, task)
    both = ("image-projection", "text-layernorm")
    assert moved(before, method) == {n for n in before if any(EXPECTED[part](n) for part in both)}
    method = build()
    before = snapshot(method)
    assert moved(before, learn(method, task)) == set(before)


def test_zero_shot_moves_nothing(build: Callable[..., Method], task: Task) -> None:
    method = build("zero-shot")
    before = snapshot(method)
    assert moved(before, learn(method, task, replace(task, index=1))) == set()


@pytest.mark.parametrize(
    "setting", [{"trainable": ["image-layernrm"]}, {"trainabel": ["image"]}, {"label_smoothing": 2}]
)
def test_settings_that_do_not_fit_are_named(build: Callable[..., Method], setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{next(iter(setting))}"):
        build(**setting)


# -- replay ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replay", "weights"),
    [({"kind": "reservoir", "size": 6}, (0.5, 0.5)), ({"kind": "balanced", "size": 6, "share": 0.25}, (0.75, 0.25)),
     ({"kind": "all", "share": None}, (0.4, 0.6))],
)  # fmt: skip
def test_replay_mixes_the_past_into_the_next_task(
    build: Callable[..., Method], task: Task, replay: dict[str, Any], weights: tuple[float, float]
) -> None:
    method = build(replay=replay)
    first = method.phases(task, Past())[0].streams["main"].sources
    assert [source.weight for source in first] == [1.0]
    learn(method, task)
    held = method.describe().buffer_samples
    assert held == (24 if replay["kind"] == "all" else 6)
    assert task.val is not None
    second = Task(1, "second", task.val)
    sources = method.phases(second, Past((task,)))[0].streams["main"].sources
    assert [len(source.table) for source in sources] == [16, held]
    assert [source.weight for source in sources] == pytest.approx(weights)
    assert set(sources[1].table.ids) <= set(task.train.ids)


@pytest.mark.parametrize(
    ("budget", "plain", "beside"), [("epochs", 6, 8), ("samples", 3, 4), ("steps", 2, 2)]
)
def test_replay_beside_the_task_shows_it_as_often_as_without(
    build: Callable[..., Method], task: Task, budget: str, plain: int, beside: int
) -> None:
    amount = {"epochs": 2, "samples": 24, "steps": 2}[budget]
    training = TrainingConfig(**{budget: amount, "batch_size": 8, "device": "cpu"})
    found = []
    for extra in (False, True):
        learner = Learner(
            build(replay={"kind": "reservoir", "share": 0.25, "size": 9, "beside": extra}), training
        )
        learner.learn(task)
        phase = learner.plan(replace(task, index=1))[0]
        found.append(phase_steps(phase, training))
        new = sum(
            table.name != "replay" for step in range(found[-1]) for table in _tables(learner, phase, step)
        )
    assert found == [plain, beside]
    assert budget == "steps" or new == plain * 8


def _tables(learner: Learner, phase: Any, step: int) -> list[Table]:
    return [
        table
        for table, _ in learner.engine.maker.samples_of_step(phase.streams["main"], "1/train/0/main", step)
    ]


def test_the_backbones_own_data_are_replayed_only_where_asked(
    build: Callable[..., Method], task: Task
) -> None:
    base = task.val
    for wanted in (False, True):
        method = build(replay={"kind": "all", "base": wanted})
        method.begin_task(task, Past(base=base))
        sources = method.phases(task, Past(base=base))[0].streams["main"].sources
        assert len(sources) == 1 + wanted


# -- merge ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_wise_ft_lands_between_start_and_end(build: Callable[..., Method], task: Task, alpha: float) -> None:
    plain = build()
    start = snapshot(plain)
    end = snapshot(learn(plain, task))
    merged = snapshot(learn(build(merge={"kind": "wise-ft", "alpha": alpha}), task))
    for name in start:
        assert torch.allclose(merged[name], (1 - alpha) * start[name] + alpha * end[name], atol=1e-6)
    if alpha in (0.0, 1.0):
        assert all(torch.equal(merged[name], (start, end)[int(alpha)][name]) for name in start)


def test_wise_ft_may_look_back_to_the_very_first_model(build: Callable[..., Method], task: Task) -> None:
    assert task.val is not None
    second = Task(1, "second", task.val)
    method = build(merge={"kind": "wise-ft", "alpha": 0.0, "reference": "initial"})
    before = snapshot(method)
    assert moved(before, learn(method, task, second)) == set()


def test_a_running_mean_of_every_step_is_the_mean_of_the_path(
    build: Callable[..., Method], task: Task
) -> None:
    path: list[dict[str, torch.Tensor]] = []
    plain = build()
    path.append(snapshot(plain))
    plain.after_step = lambda progress: path.append(snapshot(plain))  # type: ignore[method-assign]
    learn(plain, task)
    mean = snapshot(learn(build(merge={"kind": "running-mean", "every": 1}), task))
    for name in mean:
        assert torch.allclose(mean[name], torch.stack([p[name] for p in path]).mean(dim=0), atol=1e-6)


def test_the_sweep_is_recorded(build: Callable[..., Method], task: Task) -> None:
    method = learn(build("wise-ft", merge={"kind": "wise-ft", "alpha": "sweep", "grid": [0.0, 1.0]}), task)
    note = method.notes["merge"]
    assert note["alpha"] in (0.0, 1.0)
    assert note["chosen_on"] == "validation"
    assert set(note["sweep"]) == {"0.0", "1.0"}


def test_a_sweep_without_validation_pictures_says_so(build: Callable[..., Method], task: Task) -> None:
    with pytest.raises(DataError, match=r"'bare': there is no validation image to choose on\..*alpha=0\.5"):
        learn(build(merge={"kind": "wise-ft", "alpha": "sweep"}), Task(0, "bare", task.train))


# -- penalties ------------------------------------------------------------------------------------------------


def test_a_heavy_constraint_holds_the_weights(build: Callable[..., Method], task: Task) -> None:
    def distance(**settings: Any) -> float:
        method = build(**settings)
        before = snapshot(method)
        after = snapshot(
            learn(method, task, steps=12, optimiser="sgd", momentum=0.0, lr=0.02, clip_norm=None)
        )
        return sum(float((after[n] - before[n]).square().sum()) for n in before)

    held = distance(penalties={"weight-constraint": {"weight": 20.0}})
    assert held < 0.5 * distance()
    assert distance(penalties={"weight-constraint": {"weight": 0.0}}) == distance()


@pytest.mark.parametrize(
    ("penalties", "match"),
    [({"weight-constrain": {}}, "'weight-constraint'"), ({"weight-constraint": {"wieght": 1}}, "'weight'")],
)
def test_an_unknown_penalty_or_setting_is_answered(
    build: Callable[..., Method], penalties: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        build(penalties=penalties)


# -- predicting and counting ----------------------------------------------------------------------------------


def test_a_class_is_the_unit_mean_of_its_templates(build: Callable[..., Method]) -> None:
    method = build().eval()
    space = LabelSpace((ClassEntry("a", "cat", ("a {}", "{}")), ClassEntry("b", "dog")))
    with torch.no_grad():
        bank = method.class_bank(space)["embedding"]
        texts = method.encode_texts(method.backbone.tokenise(["a cat", "cat", "dog"]))["embedding"]
    expected = torch.nn.functional.normalize(texts[:2].mean(dim=0), dim=0)
    assert torch.allclose(bank[0], expected, atol=1e-6)
    assert torch.allclose(bank[1], texts[2], atol=1e-6)


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(build: Callable[..., Method]) -> None:
    method = build().eval()
    pixels = torch.rand(6, 3, 16, 16)
    with torch.no_grad():
        whole = method.encode_images(pixels)["embedding"]
        alone = torch.cat([method.encode_images(p[None])["embedding"] for p in pixels])
    assert torch.allclose(whole, alone, atol=1e-6)


def test_counts_are_those_of_the_module(build: Callable[..., Method]) -> None:
    method = build(replay={"kind": "reservoir", "size": 9})
    cost = method.describe()
    total = sum(p.numel() for p in method.backbone.clip.parameters())
    assert (cost.stored_parameters, cost.trainable_parameters, cost.bytes) == (total, total, 4 * total)
    assert cost.buffer_samples == 0
    assert cost.growth_per_task == "none"  # a reservoir is bounded


def test_the_padding_of_class_names_is_not_computed_and_gradients_stay(
    build: Callable[..., Method], task: Task
) -> None:
    names = ("a", "cat")
    classes = tuple(ClassEntry(str(i), name) for i, name in enumerate(names))
    keys = [str(i % 2) for i in range(len(task.train))]
    labelled = replace(task, train=task.train.with_column("class_key", keys), classes=classes)
    grads: list[dict[str, torch.Tensor | None]] = []
    for short in (True, False):
        method = build()
        learner = Learner(method, TrainingConfig(steps=1, batch_size=8, device="cpu"))
        method.begin_task(labelled, learner.past())
        phase = method.phases(labelled, learner.past())[0]
        width = method.backbone.tokenise(["a"]).shape[1]
        batch = {"main": learner.engine.maker.batch(phase.streams["main"], "x", 0)}
        assert batch["main"]["class_length"] < width
        if not short:
            batch["main"]["class_length"] = None
        method(batch, Progress(0, "train", 0, 0, 1, 0))["labels"].backward()
        grads.append({n: p.grad for n, p in method.named_parameters()})
    for name, grad in grads[0].items():
        other = grads[1][name]
        assert (grad is None) == (other is None), name
        if grad is not None and other is not None:
            assert torch.allclose(grad, other, rtol=1e-4, atol=1e-5), (name, (grad - other).abs().max())


def test_a_text_tower_of_another_kind_keeps_its_padding() -> None:
    class Other(torch.nn.Module):
        text = torch.nn.Linear(2, 2)

    assert needed_tokens(Other(), torch.zeros(1, 5, dtype=torch.long)) is None


@pytest.mark.parametrize("per", ["auto", "class", "task"])
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_places_of_the_buffer_are_shared_among_classes_or_tasks(
    build: Callable[..., Method], task: Task, per: str, base: bool, named: bool
) -> None:
    method = build(replay={"kind": "balanced", "size": 6, "per": per, "base": base})
    names = tuple(ClassEntry(k, k) for k in dict.fromkeys(task.train.column("class_key")))
    given = replace(task, classes=names if named else None)
    assert task.val is not None
    past = Past(base=task.val)
    for _ in range(2):  # a plan opens it, too
        method.begin_task(given, past)
        assert method.buffer is not None
        state = method.buffer.state()
        assert state["by_class"] == (per == "class" or (per == "auto" and named))
        assert method.buffer.seen == (len(task.val) if base else 0)
    method.end_task(given, past, dict)
    assert method.buffer.seen == len(task.train) + (len(task.val) if base else 0)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_method_overrides_the_hook_and_not_what_calls_it(hook: str) -> None:
    with pytest.raises(ConfigError, match=rf"Own\.{hook} overrides .*; rename it to {HOOKS[hook]}"):
        type("Own", (SlotMethod,), {hook: lambda self, *given: None})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("on_task_begin", "is not a hook, so nothing calls it. Did you mean 'on_begin_task'"),
        ("settle_teacher", "has no effect; it is called prepare_teacher now"),
        ("held_in_task", "has no effect; it is called task_memory now"),
    ],
)
def test_a_function_that_nothing_calls_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"Own\.{name} {re.escape(said)}"):
        type("Own", (SlotMethod,), {name: lambda self, *given: None})


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("_trainable", [], "Own._trainable has no effect; it is called trainable now"),
        ("trainable", ["visual.proj"], "Own.trainable names 'visual.proj', which is not a parameter"),
    ],
)
def test_what_trains_must_be_named_as_it_is_read(
    attribute: str, value: list[str], said: str, micro_folder: Path, task: Task
) -> None:
    class Own(SlotMethod):
        def on_begin_task(self, task: Task, past: Past) -> None:
            setattr(self, attribute, value)

    method = Own(load_backbone(str(micro_folder / "model")), SlotSettings())
    with pytest.raises(ConfigError, match=re.escape(said)):
        method.begin_task(task, Past())


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("zero-shot", {"replay": {"kind": "reservoir"}}),
        ("zero-shot", {"penalties": {"lwf": {}}}),
        ("zero-shot", {"trainable": ["image"]}),
        ("joint", {"replay": {"kind": "reservoir"}}),
        ("rail", {"merge": {"kind": "wise-ft"}}),
        ("coleclip", {"trainable": ["text"]}),
    ],
)
def test_a_setting_that_does_nothing_is_an_unknown_key(
    name: str, setting: dict[str, Any], micro_folder: Path
) -> None:
    backbone = load_backbone(str(micro_folder / "model"))
    with pytest.raises(ConfigError, match=rf"method\.{next(iter(setting))}: unknown key"):
        build_method(MethodConfig(name=name, settings=setting), backbone)


def test_a_method_without_a_loss_says_so(micro_folder: Path) -> None:
    method = Method(load_backbone(str(micro_folder / "model")), MethodSettings())
    with pytest.raises(ConfigError, match="Method has no loss"):
        method({}, Progress(0, "train", 0, 0, 1, 0))
