"""Penalties: nothing at identity, the numbers of a twin written out, teachers that really are copies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import ClassEntry, Past, Progress, Reference, Task
from everclip.data.pictures.images import ImageStore
from everclip.data.sampling.batches import BatchMaker
from everclip.data.table import Table
from everclip.errors import CheckpointError, ConfigError
from everclip.learner import Learner
from everclip.methods.base import Method
from everclip.methods.build import build_method
from everclip.methods.penalties.answers import other_pictures
from everclip.methods.penalties.base import Penalty, PenaltySettings
from everclip.methods.penalties.build import PENALTIES
from everclip.methods.penalties.teachers import INITIAL, between, frozen_copy
from everclip.models.backbone import load_backbone
from everclip.models.modules.short_texts import needed_tokens

AT = Progress(0, "train", 0, 0, 10, 0)
DISTILLING: dict[str, dict[str, Any]] = {
    "lwf": {"lwf": {}},
    "lwf, published": {"lwf": {"form": "cross-entropy", "images": "own"}},
    "lwf, student's texts": {"lwf": {"text": "student", "directions": "text-to-image"}},
    "lwf, own, student's texts": {"lwf": {"text": "student", "images": "own", "reference": "initial"}},
    "lwf, one way": {"lwf": {"directions": "image-to-text", "temperature": 1.0}},
    "mod-x": {"mod-x": {"weight": 1}},
    "mod-x, mean": {"mod-x": {"reduce": "mean", "temperature": 0.1, "weight": 10}},
    "feature-distill": {"feature-distill": {}},
    "feature-distill, squared": {"feature-distill": {"distance": "squared", "reference": "task-start"}},
    "feature-distill, text": {"feature-distill": {"towers": ["text"], "weight": 3}},
    "weight-constraint": {"weight-constraint": {}},
    "weight-constraint, mean": {"weight-constraint": {"reduce": "mean", "on": ["image-layernorm"]}},
    "weight-constraint, initial": {"weight-constraint": {"reference": "initial"}},
}
Build = Callable[..., Method]


@pytest.fixture
def build(micro_folder: Path) -> Build:
    """Return a function (**settings) -> method on the micro model."""

    def make(**settings: Any) -> Method:
        return build_method(MethodConfig(settings=settings), load_backbone(str(micro_folder / "model")))

    return make


@pytest.fixture
def tasks(micro_folder: Path) -> dict[str, Task]:
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    names = list(dict.fromkeys(data.column("class_key")))
    classes = tuple(ClassEntry(k, k.replace("-", " ")) for k in names)
    train, val = data.select(range(0, 48)), data.select(range(48, 64))
    return {
        "captions": Task(0, "captions", train, val),
        "labels": Task(0, "labels", train, val, classes),
    }


def begun(method: Method, task: Task, size: int = 5, reference: Reference | None = None) -> Any:
    """Begin a task and return its first batch."""
    past = Past(training=TrainingConfig(steps=3, batch_size=size), reference=reference)
    method.begin_task(task, past)
    (phase,) = method.phases(task, past)
    backbone, training = method.backbone, past.training
    assert training is not None
    maker = BatchMaker(
        backbone.pixels,
        backbone.preprocess,
        backbone.tokenise,
        training.augment,
        training.captions,
        0,
        ImageStore(),
        needed=partial(needed_tokens, backbone.clip),
    )
    method.train()
    return {name: maker.batch(stream, name, 0) for name, stream in phase.streams.items()}


def move(method: Method) -> None:
    """Change every weight a little, as training would."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))


def penalty_of(method: Method, batch: Any) -> torch.Tensor:
    (name,) = method.settings.penalties
    return method(batch, AT)[name]


# -- identity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["captions", "labels"])
@pytest.mark.parametrize("penalties", DISTILLING.values(), ids=DISTILLING)
def test_nothing_is_lost_and_nothing_pulls_where_student_and_teacher_agree(
    build: Build, tasks: dict[str, Task], penalties: Any, kind: str
) -> None:
    method = build(penalties=penalties)
    batch = begun(method, tasks[kind])
    loss = penalty_of(method, batch)
    if penalties.get("lwf", {}).get("form") == "cross-entropy":
        assert loss.item() > 0.1  # the teacher's entropy
    else:
        assert abs(loss.item()) < 1e-7
    loss.backward()
    pulls = [p.grad.abs().max().item() for p in method.parameters() if p.grad is not None]
    assert max(pulls) < 1e-5
    move(method)
    loss = penalty_of(method, batch)
    method.zero_grad()
    loss.backward()
    assert loss.item() > 1e-6
    assert max(p.grad.abs().max().item() for p in method.parameters() if p.grad is not None) > 1e-4


@pytest.mark.parametrize("kind", ["captions", "labels"])
@pytest.mark.parametrize("penalties", DISTILLING.values(), ids=DISTILLING)
def test_a_batch_of_one(build: Build, tasks: dict[str, Task], penalties: Any, kind: str) -> None:
    method = build(penalties=penalties)
    batch = begun(method, tasks[kind], size=1)
    move(method)
    loss = penalty_of(method, batch)
    loss.backward()
    assert math.isfinite(loss.item())
    assert loss.item() >= 0
    grads = [p.grad for p in method.parameters() if p.grad is not None]
    assert all(bool(g.isfinite().all()) for g in grads)


# -- numbers --------------------------------------------------------------------------------------------------


def answers(rows: Any, columns: Any, scale: float, temperature: float) -> list[list[float]]:
    """Softmax over columns, element by element in double precision."""
    table = []
    for row in rows.tolist():
        cosines = [sum(a * b for a, b in zip(row, column, strict=True)) for column in columns.tolist()]
        powers = [math.exp(scale * c / temperature) for c in cosines]
        table.append([p / sum(powers) for p in powers])
    return table


def divergence(teacher: list[list[float]], student: list[list[float]], temperature: float) -> float:
    found = [
        sum(p * math.log(p / q) for p, q in zip(t, s, strict=True))
        for t, s in zip(teacher, student, strict=True)
    ]
    return temperature**2 * sum(found) / len(found)


@pytest.mark.parametrize("kind", ["captions", "labels"])
@pytest.mark.parametrize(("text", "temperature"), [("teacher", 2.0), ("student", 1.0)])
def test_lwf_is_the_divergence_of_answers_both_ways(
    build: Build, tasks: dict[str, Task], kind: str, text: str, temperature: float
) -> None:
    method = build(penalties={"lwf": {"text": text, "temperature": temperature, "weight": 0.5}})
    start = load_backbone(method.backbone.name).double()
    batch = begun(method, tasks[kind])
    move(method)
    found = penalty_of(method, batch).item()
    main = batch["main"]
    tokens = main["class_tokens"] if kind == "labels" else main["tokens"]
    student = load_backbone(method.backbone.name)
    student.load_state_dict(method.backbone.state_dict())
    student.double()
    with torch.no_grad():
        images = [m.encode_image(main["image"].double()) for m in (start, student)]
        texts = [m.encode_text(tokens) for m in (start, start if text == "teacher" else student)]
    scale = float(start.logit_scale.detach())
    image_rows = [answers(i, t, scale, temperature) for i, t in zip(images, texts, strict=True)]
    text_rows = [answers(t, i, scale, temperature) for i, t in zip(images, texts, strict=True)]
    expected = 0.5 * (divergence(*image_rows, temperature) + divergence(*text_rows, temperature))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("distance", ["cosine", "squared"])
def test_feature_distillation_is_the_mean_distance(
    build: Build, tasks: dict[str, Task], distance: str
) -> None:
    method = build(penalties={"feature-distill": {"distance": distance, "weight": 2}})
    start = load_backbone(method.backbone.name)
    batch = begun(method, tasks["captions"])
    move(method)
    found, main = penalty_of(method, batch).item(), batch["main"]
    expected = 0.0
    with torch.no_grad():
        for side, column in (("image", "image"), ("text", "tokens")):
            pairs = [getattr(m, f"encode_{side}")(main[column]) for m in (start, method.backbone)]
            for a, b in zip(*pairs, strict=True):
                gap = (
                    1 - float(a.double() @ b.double())
                    if distance == "cosine"
                    else float(((a - b) ** 2).sum())
                )
                expected += 2 * gap / len(pairs[0])
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_weight_constraint_holds_the_named_parts_to_the_named_model(
    build: Build, tasks: dict[str, Task]
) -> None:
    for reduce, reference in itertools.product(("sum", "mean"), ("task-start", "initial")):
        settings = {"weight": 3.0, "reduce": reduce, "reference": reference, "on": ["image-layernorm"]}
        method = build(penalties={"weight-constraint": settings})
        first = {n: p.detach().clone() for n, p in method.named_parameters() if "visual" in n and ".ln_" in n}
        begun(method, tasks["captions"])
        move(method)
        method.end_task(tasks["captions"], Past(), lambda: {})
        second = {n: method.get_parameter(n).detach().clone() for n in first}
        batch = begun(method, tasks["captions"])
        move(method)
        against = second if reference == "task-start" else first
        gaps = [float(((method.get_parameter(n).detach() - against[n]) ** 2).sum()) for n in first]
        size = sum(v.numel() for v in first.values()) if reduce == "mean" else 1
        assert penalty_of(method, batch).item() == pytest.approx(3 * sum(gaps) / size, rel=1e-4)


# -- teachers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["initial", "task-start"])
def test_a_teacher_stays_while_the_student_moves(
    build: Build, tasks: dict[str, Task], reference: str
) -> None:
    method = build(penalties={"feature-distill": {"reference": reference}, "lwf": {"reference": reference}})
    config = TrainingConfig(steps=2, batch_size=6, lr=1e-2, warmup=0, device="cpu")
    learner, task = Learner(method, config), tasks["captions"]
    initial = load_backbone(method.backbone.name)
    pixels = torch.rand(3, 3, 16, 16)
    learner.learn(task)
    with torch.no_grad():
        at_start, second = (m.eval().encode_image(pixels) for m in (initial, method.backbone))
    assert not torch.allclose(second, at_start, atol=1e-3)
    begun(method, Task(1, "second", task.train))
    move(method)
    teacher = method.teachers.image(reference, pixels, method.backbone)
    assert torch.allclose(teacher, at_start if reference == "initial" else second, atol=1e-6)
    own = {p.data_ptr() for p in method.parameters()}
    held = method.teacher_of(reference)
    assert method.teacher_parameters == sum(p.numel() for p in held.parameters()) > 0  # and no other is there
    assert not any(p.data_ptr() in own or p.requires_grad for p in held.parameters())
    assert not held.training


def test_teachers_are_shared_and_no_part_of_the_model(build: Build, tasks: dict[str, Task]) -> None:
    both = build(penalties={"feature-distill": {"reference": "initial"}, "lwf": {"reference": "initial"}})
    plain = build()
    size = sum(p.numel() for p in plain.parameters())
    assert both.state_dict().keys() == plain.state_dict().keys()
    assert both.describe().stored_parameters == 2 * size  # one teacher for two penalties
    batch, calls = begun(both, tasks["captions"]), []
    ask = both.teachers.image
    both.teachers.image = lambda *given: calls.append(given) or ask(*given)  # type: ignore[method-assign,func-returns-value]
    both(batch, AT)
    assert len(calls) == 1


def test_the_start_model_is_not_stored_and_a_changed_one_is_refused(
    build: Build, tasks: dict[str, Task]
) -> None:
    method = build(penalties={"feature-distill": {}})
    begun(method, tasks["captions"])
    assert method.extra_tensors() == {}
    state = method.extra_state()
    assert state["start_model"] == method.backbone.fingerprints()
    build(penalties={"feature-distill": {}}).load_extra({}, state)
    with pytest.raises(CheckpointError, match="the start model has changed since this run began"):
        build(penalties={"feature-distill": {}}).load_extra(
            {}, state | {"start_model": {"image": "x", "text": "y"}}
        )


def test_a_teacher_of_the_tasks_start_is_rebuilt_inside_a_task(build: Build, tasks: dict[str, Task]) -> None:
    method = build(penalties={"lwf": {}}, trainable=["image", "text-layernorm"])
    move(method)
    batch = begun(method, tasks["captions"])
    move(method)
    resumed = build(penalties={"lwf": {}}, trainable=["image", "text-layernorm"])
    resumed.load_state_dict(method.state_dict())
    resumed.load_extra(method.extra_tensors(), method.extra_state())
    resumed.train()
    # The text tower and the projection trained nowhere: they were moved by hand, in the teacher too.
    frozen = [n for n, p in method.named_parameters() if not p.requires_grad]
    assert frozen
    kept = method.teacher_of("task-start").state_dict()
    again = resumed.teacher_of("task-start").state_dict()
    trained = {n.removeprefix("backbone.") for n, p in method.named_parameters() if p.requires_grad}
    assert all(torch.equal(kept[n], again[n]) for n in trained)
    assert batch["main"]["image"].shape[0] == 5


class Keeps(Penalty[PenaltySettings]):
    """A penalty with tensors of its own, as one that estimates the importance of weights has them."""

    def __init__(self, name: str, settings: PenaltySettings) -> None:
        super().__init__(name, settings)
        self.kept: dict[str, torch.Tensor] = {}

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.kept

    def load(self, tensors: Any) -> None:
        self.kept = dict(tensors)


def test_each_penalty_gets_its_own_tensors_back(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second", "without"):
        monkeypatch.setitem(PENALTIES, name, Keeps)
    settings: dict[str, Any] = {name: {} for name in ("first", "second", "without")}
    method, resumed = build(penalties=settings), build(penalties=settings)
    first, second, _ = method.penalties
    assert isinstance(first, Keeps)
    assert isinstance(second, Keeps)
    first.kept = {"importance.a.weight": torch.ones(2), "count": torch.tensor(3)}
    second.kept = {"count": torch.tensor(4)}
    assert set(method.extra_tensors()) == {
        "penalty.first.importance.a.weight",
        "penalty.first.count",
        "penalty.second.count",
    }
    resumed.load_extra(method.extra_tensors(), method.extra_state())
    kept = [penalty.tensors() for penalty in resumed.penalties]
    assert [set(tensors) for tensors in kept] == [{"importance.a.weight", "count"}, {"count"}, set()]
    assert (int(kept[0]["count"]), int(kept[1]["count"])) == (3, 4)


@pytest.mark.parametrize(
    ("penalties", "match"),
    [
        ({"weight-constrain": {}}, "'weight-constraint'"),
        ({"weight-constraint": {"wieght": 1}}, "'weight'"),
        ({"lwf": {"temperature": 0}}, r"method\.penalties\.lwf\.temperature"),
        ({"feature-distill": {"towers": []}}, r"method\.penalties\.feature-distill\.towers"),
        ({"weight-constraint": {"on": ["text-projection"]}}, "nothing of text-projection trains"),
    ],
)
def test_what_does_not_fit_is_answered(build: Build, penalties: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(penalties=penalties, trainable=["image"])


@pytest.mark.parametrize("name", PENALTIES)
def test_a_weight_of_zero_costs_nothing(build: Build, tasks: dict[str, Task], name: str) -> None:
    method = build(penalties={name: {"weight": 0}})
    batch = begun(method, tasks["captions"])
    assert method(batch, AT).keys() == {"contrastive"}
    assert method.describe().stored_parameters == sum(p.numel() for p in method.parameters())


@pytest.mark.parametrize("name", ["lwf", "feature-distill"])
def test_distillation_holds_the_answers(build: Build, tasks: dict[str, Task], name: str) -> None:
    def drift(weight: float) -> float:
        method = build(penalties={name: {"weight": weight, "reference": "initial"}})
        start = load_backbone(method.backbone.name)
        config = TrainingConfig(steps=15, batch_size=12, lr=3e-3, warmup=0, device="cpu")
        Learner(method, config).learn(tasks["captions"])
        pixels = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return float(
                (method.backbone.eval().encode_image(pixels) - start.encode_image(pixels)).square().mean()
            )

    assert drift(30.0) < 0.5 * drift(0.0)


def test_a_teacher_between_two_models_is_named_by_its_share() -> None:
    assert between(0.0) == INITIAL
    assert between(1.0) == "between:1.0"
    assert len({between(share) for share in (0.0, 0.25, 0.5, 1.0)}) == 4


def test_a_frozen_copy_shares_what_holds_no_weights_and_nothing_else(build: Build) -> None:
    backbone = build().backbone.train()
    copied = frozen_copy(backbone)
    assert copied.tokenizer is backbone.tokenizer
    assert copied.preprocess is backbone.preprocess
    assert not any(module.training for module in copied.modules())
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    own = {tensor.data_ptr() for tensor in backbone.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in copied.state_dict().values())
    assert backbone.training
    assert any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_other_pictures_are_those_of_all_processes_but_the_own_one(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.methods.penalties.answers.rank", lambda: place)
    found = other_pictures(3, 9, torch.device("cpu"))
    wanted = [[c for c in range(9) if c != row + 3 * place] for row in range(3)]
    assert found.tolist() == wanted
