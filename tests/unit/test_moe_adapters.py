"""MoE-Adapters: what a task may change and what it may not, routes and their texts, counts of parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pyarrow.parquet as pq
import pytest
import torch

import micro
from everclip.config import GuardConfig, MethodConfig, TrainingConfig
from everclip.contracts import ClassEntry, EvalSet, LabelSpace, Past, Progress, Task
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.methods.moe_adapters.method import MoeAdapters, shape
from everclip.methods.moe_adapters.settings import MoeSettings
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.modules.expert_bank import TENSORS
from everclip.models.modules.experts import experts_in
from everclip.training.optim import build_optimiser

EXPERTS = {"count": 5, "active": 2, "width": 4}
Make = Callable[..., Learner]
of_classes = partial(micro.of_classes, templates=("a {}", "the {}"))


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    """96 pictures of 6 classes."""
    return Table(pq.read_table(micro_folder / "data.parquet"))


@pytest.fixture
def make(micro_folder: Path) -> Make:
    """Return a function (training settings, **method settings) -> learner on the two-layer CLIP."""

    def build(training: dict[str, Any] | None = None, **settings: Any) -> Learner:
        given = {"experts": EXPERTS, "selector": None, **settings}
        method = build_method(
            MethodConfig(name="moe-adapters", settings=given), load_backbone(str(micro_folder / "model"))
        )
        steps = {"steps": 2, "batch_size": 8, "lr": 0.02, "warmup": 0, "device": "cpu", "threads": 1}
        return Learner(method, TrainingConfig(**{**steps, **(training or {})}))

    return build


def moe(learner: Learner) -> MoeAdapters:
    assert isinstance(learner.method, MoeAdapters)
    return learner.method


def pixels(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def space(*wanted: int) -> LabelSpace:
    return LabelSpace(tuple(ClassEntry(f"class-{n}", f"class {n}", ("a {}", "the {}")) for n in wanted))


@torch.no_grad()
def answers(method: MoeAdapters, known_task: int | None = None) -> torch.Tensor:
    method.eval()
    images = method.encode_images(pixels(), known_task)
    return method.class_scores(images, space(0, 1, 2), method.class_bank(space(0, 1, 2)))


def state(method: MoeAdapters) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in method.state_dict().items()}


# -- size -----------------------------------------------------------------------------------------------------


def test_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-16"))
    tokenizer: Any = open_clip.SimpleTokenizer()
    backbone = Backbone(clip, tokenizer, lambda x: x, SimpleNamespace(size=224), "ViT-B-16")  # type: ignore[arg-type]
    plain = sum(p.numel() for p in backbone.parameters())
    method = MoeAdapters(backbone, MoeSettings(grow=False))
    nothing = SimpleNamespace(classes=(), train=())
    for index in range(11):
        method.begin_task(Task(index, str(index), nothing.train, classes=()), Past())  # type: ignore[arg-type]
    assert plain == 149_620_737
    assert method.describe().stored_parameters - plain == 51_059_712
    sides = {
        side: sum(p.numel() for _, e in experts_in(clip, side) for p in e.parameters())
        for side in ("image", "text")
    }  # type: ignore[arg-type]
    assert [round(count / 1e6, 2) for count in sides.values()] == [30.63, 20.43]
    cost = method.describe()
    assert cost.growth_per_task == "675,840 parameters of routers"
    assert cost.active_parameters - plain == 12 * 2 * (99_136 + 66_112) + 675_840
    assert cost.trainable_parameters == 22 * 1_982_976 + 675_840
    growing = MoeSettings(grow=True)
    method.settings = growing
    assert method.describe().growth_per_task.endswith("1,982,976 per expert that is added to all blocks")
    one = MoeSettings(experts={"count": 2, "active": 2}, routers="one", freeze=0)  # type: ignore[arg-type]
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-16"))
    small = MoeAdapters(Backbone(clip, tokenizer, lambda x: x, SimpleNamespace(size=224), "ViT-B-16"), one)  # type: ignore[arg-type]
    for index in range(3):
        small.begin_task(Task(index, str(index), nothing.train, classes=()), Past())  # type: ignore[arg-type]
    assert small.describe().stored_parameters - plain == 4_027_392


def test_what_the_selector_adds_is_counted(make: Make, data: Table) -> None:
    learner = make(selector={"kind": "autoencoder", "width": 7})
    method = moe(learner)
    for index in range(2):
        method.begin_task(of_classes(data, index, index, index + 1), learner.past())
    found = 2 * 32  # mean and deviation of early tokens
    size = 2 * 7 * found + 7 + found
    assert f"; {size:,} of the selector" in method.describe().growth_per_task


# -- learning -------------------------------------------------------------------------------------------------


def test_twelve_tasks_change_only_what_they_may(make: Make, data: Table, one_class_tasks: None) -> None:
    learner = make()
    method = moe(learner)
    frozen_clip = {k: v for k, v in state(method).items() if ".experts." not in k}
    start = answers(method)
    for index in range(12):
        task = of_classes(data, index, *((index % 6,) if index % 3 == 0 else (index % 6, (index + 1) % 6)))
        before = {name: {t: e.bank.whole(t) for t in TENSORS} for name, e in experts_in(method.backbone.clip)}
        kept = {name: e.bank.frozen for name, e in experts_in(method.backbone.clip)}
        routers = {k: v for k, v in state(method).items() if ".routers." in k}
        learner.learn(task)
        after = state(method)
        assert all(torch.equal(after[k], v) for k, v in routers.items())
        assert all(torch.equal(after[k], v) for k, v in frozen_clip.items())
        for name, experts in experts_in(method.backbone.clip):
            assert set(kept[name]) <= set(experts.bank.frozen)
            assert len(experts.bank.frozen) <= 2 * (index + 1)
            assert set(experts.most_used(2)) <= set(experts.bank.frozen)
            for t in TENSORS:
                rows = list(kept[name])
                assert torch.equal(experts.bank.whole(t)[rows], before[name][t][rows])
        changed = [k for k in after if k.endswith(f"routers.{index}.gate") and after[k].any()]
        assert changed or index % 3 == 0  # one class has no cross entropy
    assert method.routes() == ("zero-shot", *(f"task {i}" for i in range(12)))
    assert torch.equal(
        answers(method), start
    )  # nobody tells the task, and nothing selects: the model without experts
    assert torch.equal(answers(method, known_task=77), start)
    assert not torch.allclose(answers(method, known_task=3), start, atol=1e-4)
    assert max(e.bank.count for _, e in experts_in(method.backbone.clip)) > 5


def test_the_optimiser_holds_nothing_for_frozen_experts_and_weight_decay_does_not_reach_them(
    make: Make, data: Table
) -> None:
    learner = make({"weight_decay": 0.5})
    method = moe(learner)
    learner.learn(of_classes(data, 0, 0, 1))
    _, experts = next(experts_in(method.backbone.clip))
    held = {t: experts.bank.whole(t)[list(experts.bank.frozen)] for t in TENSORS}
    task = of_classes(data, 1, 2, 3)
    method.begin_task(task, learner.past())
    phase = method.phases(task, learner.past())[0]
    optimiser = build_optimiser(method, phase, learner.training)
    trained = {id(p) for group in optimiser.param_groups for p in group["params"]}
    names = {n for n, p in method.named_parameters() if id(p) in trained}
    assert names == {n for n, p in method.named_parameters() if p.requires_grad}
    assert all(".experts.bank." in n or ".experts.routers.1." in n for n in names)
    assert experts.bank.down.shape[0] == experts.bank.free
    rows = list(experts.bank.frozen)
    for parameter in method.parameters():  # decay alone
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    assert all(torch.equal(experts.bank.whole(t)[rows], held[t]) for t in TENSORS)


def test_an_old_task_changes_only_through_experts_that_were_left_free(make: Make, data: Table) -> None:
    drift = []
    for everything in (True, False):
        learner = make()
        method = moe(learner)
        learner.learn(of_classes(data, 0, 0, 1, 2))
        for _, experts in experts_in(method.backbone.clip):
            experts.bank.freeze(range(5) if everything else ())
        before = answers(method, known_task=0)
        learner.learn(of_classes(data, 1, 3, 4, 5))
        drift.append(float((answers(method, known_task=0) - before).abs().max()))
    assert drift[0] == 0
    assert drift[1] > 0


def test_fixed_experts_run_out_as_published_and_only_the_router_learns_then(make: Make, data: Table) -> None:
    learner = make(grow=False, freeze=5, experts={**EXPERTS, "noise": True})
    method = moe(learner)
    for index in range(3):
        learner.learn(of_classes(data, index, index, index + 1))
    banks = [e.bank for _, e in experts_in(method.backbone.clip)]
    assert {bank.count for bank in banks} == {5}
    assert all(bank.free < 5 for bank in banks)


def test_training_is_decided_by_its_keys_alone(make: Make, data: Table) -> None:
    found = []
    for noise in (0, 1):
        learner = make()
        torch.manual_seed(noise)
        learner.learn(of_classes(data, 0, 0, 1))
        found.append(state(moe(learner)))
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def test_short_texts_give_the_same_gradients(make: Make, data: Table) -> None:
    task = of_classes(data, 0, 0, 1, 2)
    grads = []
    for short in (True, False):
        learner = make(experts={**EXPERTS, "dropout": 0.0})
        method = moe(learner)
        method.begin_task(task, learner.past())
        phase = method.phases(task, learner.past())[0]
        batch = {"main": learner.engine.maker.batch(phase.streams["main"], "x", 0)}
        assert batch["main"]["class_length"] < 12
        if not short:
            batch["main"]["class_length"] = None
        method.train()
        for _, experts in experts_in(method.backbone.clip):
            experts.bank.up.data.normal_(generator=torch.Generator().manual_seed(1))
        losses = method(batch, Progress(0, "train", 0, 0, 1, 0))
        losses["labels"].backward()
        grads.append({n: p.grad for n, p in method.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert grad is not None, name  # zero for experts nobody took, but never missing
        assert torch.allclose(grad, grads[1][name], atol=1e-5), name


def test_balance_is_a_loss_of_its_own(make: Make, data: Table) -> None:
    for weight in (0.0, 0.01):
        learner = make(balance=weight)
        method, task = moe(learner), of_classes(data, 0, 0, 1)
        method.begin_task(task, learner.past())
        batch = {
            "main": learner.engine.maker.batch(method.phases(task, learner.past())[0].streams["main"], "x", 0)
        }
        losses = method.train()(batch, Progress(0, "train", 0, 0, 1, 0))
        assert ("balance" in losses) == (weight > 0)
        assert all(bool(loss.isfinite()) for loss in losses.values())


# -- predicting -----------------------------------------------------------------------------------------------


def test_one_class_one_picture_and_a_name_that_two_tasks_share(
    make: Make, data: Table, one_class_tasks: None
) -> None:
    learner = make({"batch_size": 1})
    method = moe(learner)
    learner.learn(of_classes(data, 0, 0))
    learner.learn(of_classes(data, 1, 0, 1))
    method.eval()
    whole = answers(method, known_task=1)
    with torch.no_grad():
        for n in range(len(whole)):
            images = method.encode_images(pixels()[n : n + 1], 1)
            bank = method.class_bank(space(0, 1, 2))
            assert torch.allclose(
                method.class_scores(images, space(0, 1, 2), bank), whole[n : n + 1], atol=1e-5
            )
            assert set(bank) == {"embedding", "route 2"}  # texts of the route that occurs


def test_each_picture_is_compared_with_the_texts_of_its_own_route(make: Make, data: Table) -> None:
    learner = make()
    method = moe(learner)
    for index in range(2):
        learner.learn(of_classes(data, index, 2 * index, 2 * index + 1))
    alone = [answers(method, known) for known in (None, 0, 1)]
    route = torch.tensor([2, 0, 1, 1, 0, 2])
    method.selector = SimpleNamespace(early=None, features=lambda b, x: x, decide=lambda f: route)  # type: ignore[assignment]
    mixed = answers(method)
    for n, r in enumerate(route.tolist()):
        assert torch.allclose(mixed[n], alone[r][n], atol=1e-5)
    with torch.no_grad():
        found = method.encode_images(pixels())
    assert torch.equal(found["route"], route)
    assert found["experts"].shape == (6, 2 * 2)
    assert ((found["experts"] == -1).all(dim=1) == (route == 0)).all()
    assert method.expert_places() == ("image block 0", "image block 1")


def test_captions_leave_their_texts_alone(make: Make, data: Table) -> None:
    learner = make()
    method = moe(learner)
    texts = learner.encode(texts=["a cat"])["texts"]
    task = replace(of_classes(data, 0, 0, 1), classes=None)
    learner.learn(task)
    assert torch.equal(learner.encode(texts=["a cat"])["texts"], texts)
    assert not torch.equal(answers(method, 0), answers(method))
    only_texts = make(experts={**EXPERTS, "tower": "text"})
    with pytest.raises(ConfigError, match="nothing trains on task"):
        only_texts.learn(task)


def test_with_text_experts_alone_the_selector_still_decides(make: Make, data: Table) -> None:
    learner = make(experts={**EXPERTS, "tower": "text"}, selector="gaussian")
    method = moe(learner)
    learner.learn(of_classes(data, 0, 0, 1))
    assert method.selector is not None
    method.selector.limits[:, 1] = torch.inf  # nothing is too far
    found = method.eval().encode_images(pixels())
    assert (found["route"] == 1).all()


def test_a_cache_knows_what_decides_a_route(make: Make, data: Table) -> None:
    keys = []
    for settings in ({"kind": "gaussian"}, {"kind": "gaussian", "compare": "calibrated"}):
        learner = make(selector=settings)
        learner.learn(of_classes(data, 0, 0, 1))
        keys.append(moe(learner).encoder_keys()["image"])
    before = make(selector=None)
    keys.append(moe(before).encoder_keys()["image"])
    assert len(set(keys)) == 3


@pytest.mark.parametrize("action", ["stop", "step-back"])
def test_a_guard_acts_after_experts_were_frozen(make: Make, data: Table, action: Any) -> None:
    learner = make({"lr": 0.05, "steps": 6}, trainable=["image", "text"], freeze=2)
    task = of_classes(data, 0, 0, 1)
    watched = EvalSet("watched", "classification", task.train, None, "retention", task.classes)
    # Whatever is seen is too little: it acts at every look.
    learner.watch([watched], GuardConfig.model_construct(max_drop=-101.0, every=100, action=action))
    learner.learn(task)
    assert learner.method.notes["guard"]["acted"]
    assert all(len(e.bank.frozen) == 2 for _, e in experts_in(learner.method.backbone.clip))


def test_one_router_serves_all_tasks(make: Make, data: Table) -> None:
    learner = make(routers="one", experts={**EXPERTS, "count": 2}, freeze=0, grow=False)
    method = moe(learner)
    before = answers(method)
    for index in range(3):
        learner.learn(of_classes(data, index, 2 * index, 2 * index + 1))
    assert not method.uses_known_task
    assert not torch.allclose(answers(method), before, atol=1e-4)
    assert torch.equal(answers(method, 1), answers(method))
    assert all(e.bank.frozen == () for _, e in experts_in(method.backbone.clip))
    assert all(list(e.routers) == ["0"] for _, e in experts_in(method.backbone.clip))
    with pytest.raises(ValueError, match="nothing to select"):
        MoeSettings(routers="one", selector="gaussian")  # type: ignore[arg-type]


def test_the_shape_comes_back(make: Make, data: Table) -> None:
    learner, twin = make(selector="gaussian"), make(selector="gaussian")
    for index in range(3):
        learner.learn(of_classes(data, index, index, index + 1))
    method, other = moe(learner), moe(twin)
    other.grow(method.structure())
    other.load_state_dict(method.state_dict())
    other.load_extra(method.extra_tensors(), method.extra_state())
    assert shape.structure(other.backbone.clip) == shape.structure(method.backbone.clip)
    assert other.routes() == method.routes()
    for known in (None, 0, 2):
        assert torch.equal(answers(other, known), answers(method, known))
    assert method.encoder_keys() == other.encoder_keys()


@pytest.mark.parametrize(("shared", "text"), [(True, 3), (False, 6)])
def test_counts_are_those_of_all_processes_and_of_shared_texts_once(
    shared: bool, text: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make().method.backbone.clip
    monkeypatch.setattr(shape, "world", lambda: 2)
    monkeypatch.setattr(shape, "mean", lambda values: values)  # both processes counted the same
    for _, experts in experts_in(clip):
        experts.new_counts = torch.full_like(experts.counts, 3)
    shape.reduce_counts(clip, shared_texts=shared)
    for side, wanted in (("image", 6), ("text", text)):
        for _, experts in experts_in(clip, side):  # type: ignore[arg-type]
            assert experts.counts.tolist() == [wanted] * len(experts.counts)
            assert experts.new_counts is None


@pytest.mark.parametrize(("tower", "early"), [("both", 1), ("image", 1), ("text", 0)])
def test_a_selector_looks_at_what_enters_the_first_image_block_with_experts(
    tower: str, early: int, make: Make
) -> None:
    experts = {**EXPERTS, "tower": tower, "blocks": "last1"}
    method = moe(make(experts=experts, selector="gaussian"))
    assert method.selector is not None
    assert method.selector.early == early


def test_texts_share_a_gate_where_a_causal_tower_reads_one_start_token(make: Make) -> None:
    method = moe(make())
    tower = method.backbone.clip
    assert method._has_start_token()
    mask, tower.attn_mask = tower.attn_mask, None
    assert not method._has_start_token()  # the first token reads the whole text
    tower.attn_mask = mask
    whole = method.backbone.tokenizer
    method.backbone.tokenizer = lambda texts: whole(texts)[:, 1:]
    assert not method._has_start_token()  # the first token is a word


def test_bytes_of_moe_adapters_are_those_of_its_tensors(make: Make, data: Table) -> None:
    for selector in ({"kind": "gaussian"}, {"kind": "autoencoder", "steps": 5}):
        learner = make(freeze=2, selector=selector)
        learner.learn(of_classes(data, 0, 0, 1))
        method = learner.method
        counted = {
            name: tensor
            for name, tensor in method.state_dict().items()
            if name.startswith("selector.") or ".kept_" in name or name in dict(method.named_parameters())
        }
        assert any(tensor.dtype == torch.float64 for tensor in counted.values())
        extra = method.extra_tensors().values()
        wanted = sum(t.numel() * t.element_size() for t in [*counted.values(), *extra])
        assert method.describe().bytes == wanted
