"""RAIL: the paper's numbers, the joint solution however it is reached, and zero-shot where nothing was learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from everclip.cli.export import run_export
from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import ClassEntry, LabelSpace, Task
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.methods.rail import Rail
from everclip.methods.ridge.base import Ridge
from everclip.methods.ridge.dual import Dual
from everclip.methods.ridge.expand import Expansion
from everclip.methods.ridge.fuse import as_cosines, fuse
from everclip.methods.ridge.primal import Recursive, Sums
from everclip.methods.ridge.settings import RailSettings
from everclip.models.backbone import load_backbone
from everclip.run import Run, execute
from everclip.training.progress import Progress

GOLDEN = Path(__file__).parents[1] / "golden" / "rail.npz"
QUIET = Progress(quiet=True)
FORMS: dict[str, dict[str, Any]] = {
    "sums": {"dimension": 200},
    "recursive": {"dimension": 200, "update": "recursive"},
    "no expansion": {"expansion": "none"},
    "fourier": {"dimension": 200, "expansion": "fourier"},
    "dual": {"form": "dual"},
}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """The reference's numbers."""
    with np.load(GOLDEN) as found:
        return {k: torch.from_numpy(np.atleast_1d(found[k])) for k in found}


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    """96 pictures of 6 classes."""
    return Table(pq.read_table(micro_folder / "data.parquet"))


@pytest.fixture
def make(micro_folder: Path) -> Callable[..., Learner]:
    """Return a function (training settings, **method settings) -> learner with RAIL on the two-layer CLIP."""

    def build(training: dict[str, Any] | None = None, name: str = "rail", **settings: Any) -> Learner:
        backbone = load_backbone(str(micro_folder / "model"))
        method = build_method(MethodConfig(name=name, settings=settings), backbone)
        given = {"steps": 1, "batch_size": 8, "device": "cpu", **(training or {})}
        return Learner(method, TrainingConfig(**given))

    return build


def of_classes(data: Table, index: int, *wanted: int) -> Task:
    """Return the task of the classes with these numbers."""
    names = [f"class-{number}" for number in wanted]
    rows = [i for i, key in enumerate(data.column("class_key")) if key in names]
    entries = tuple(ClassEntry(n, n.replace("-", " "), ("a {}",), (index,)) for n in names)
    return Task(index, f"task {index}", data.select(rows), classes=entries)


def head_of(learner: Learner) -> Ridge:
    method = learner.method
    assert isinstance(method, Rail)
    assert method.head is not None
    return method.head


def by_key(learner: Learner) -> torch.Tensor:
    """Return the weights with columns in the order of the classes' keys."""
    keys = [key for key, _ in learner.method.structure()["classes"]]
    return head_of(learner).weights[:, sorted(range(len(keys)), key=keys.__getitem__)]


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max() / two.abs().max())


@torch.no_grad()
def features(learner: Learner, table: Table) -> torch.Tensor:
    backbone, store = learner.method.backbone, learner.store
    pixels = torch.stack([backbone.preprocess(store.get(table, i)) for i in range(len(table))])
    return learner.method.eval().encode_images(pixels)["embedding"]


# -- against the reference ------------------------------------------------------------------------------------


def golden_head(golden: dict[str, torch.Tensor], kind: type[Sums] | type[Recursive]) -> Ridge:
    expansion = Expansion("relu", 6, 20, 0.1, seed=0)
    expansion.matrix.copy_(golden["proj_w"])
    return kind(expansion, 20, float(golden["ridge"]))


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def feed(head: Ridge, x: torch.Tensor, labels: torch.Tensor, size: int) -> None:
    for start in range(0, len(x), size):
        head.add(x[start : start + size], labels[start : start + size])
    head.solve()


def test_recursion_is_the_references(golden: dict[str, torch.Tensor]) -> None:
    head, size = golden_head(golden, Recursive), int(golden["batch"])
    assert isinstance(head, Recursive)
    head.widen(3)
    feed(head, unit(golden["x_task0"]), golden["y_task0"], size)
    assert torch.allclose(head.inverse.float(), golden["R_task0"], atol=1e-4, rtol=1e-4)
    assert torch.allclose(head.weights.float(), golden["W_task0"], atol=1e-5, rtol=1e-4)
    head.widen(5)
    feed(head, unit(golden["x_task1"]), golden["y_task1"] + 3, size)
    assert torch.allclose(head.inverse.float(), golden["R_task1"], atol=1e-4, rtol=1e-4)
    assert torch.allclose(head.weights.float(), golden["W_task1"], atol=1e-5, rtol=1e-4)
    assert torch.allclose(head.weights, golden["W_joint"], atol=1e-5)


def test_sums_are_the_references_joint_solution(golden: dict[str, torch.Tensor]) -> None:
    head = golden_head(golden, Sums)
    head.widen(5)
    feed(head, unit(golden["x_task0"]), golden["y_task0"], 7)
    feed(head, unit(golden["x_task1"]), golden["y_task1"] + 3, 50)
    assert torch.allclose(head.weights, golden["W_joint"], atol=1e-5)


def test_dual_predicts_as_the_reference(golden: dict[str, torch.Tensor]) -> None:
    head = Dual(6, 0, float(golden["krr_lambda"]), float(golden["krr_gamma"]), 100)
    head.widen(3)
    feed(head, unit(golden["x_task0"]), golden["y_task0"], 10)
    head.widen(5)
    feed(head, unit(golden["x_task1"]), golden["y_task1"] + 3, 10)
    found = head.outputs(unit(golden["x_query"]), torch.arange(5))
    # The reference solves in single precision, with 54 samples and a ridge of 0.001.
    assert torch.allclose(found, golden["krr_pred"].double(), atol=2e-4)


def test_fusion_is_the_references(golden: dict[str, torch.Tensor]) -> None:
    share, seen = float(golden["fusion"]), int(golden["num_seen"])
    probabilities = golden["zero_shot_prob"]
    outputs = torch.zeros_like(probabilities)
    outputs[:, :seen] = golden["krr_pred"]
    learned = torch.arange(7) < seen
    found = fuse(probabilities, outputs, learned, share)
    alone = probabilities.argmax(dim=1) >= seen
    assert 0 < int(alone.sum()) < len(alone)
    assert torch.equal(found[alone], probabilities[alone])
    assert torch.allclose(found, golden["fused"], atol=1e-6)


# -- the joint solution, however it is reached ----------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_learning_gives_the_joint_solution_of_every_sample_once(
    make: Callable[..., Learner], data: Table, form: str
) -> None:
    tasks = [of_classes(data, 0, 0, 1), of_classes(data, 1, 2), of_classes(data, 2, 3, 4, 5)]
    learner = make({"batch_size": 7}, **FORMS[form])
    for task in tasks:
        learner.learn(task)
    whole = Table.concat([task.train for task in tasks])
    x = features(learner, whole).double()
    keys = [key for key, _ in learner.method.structure()["classes"]]
    y = torch.nn.functional.one_hot(torch.tensor([keys.index(k) for k in whole.column("class_key")])).double()
    head = head_of(learner)
    if isinstance(head, Dual):
        expected = torch.exp(-0.1 * torch.cdist(x, x) ** 2) + 0.001 * torch.eye(len(x)).double()
        expected = torch.linalg.solve(expected, y)
    else:
        phi = head.features(x.float())
        expected = torch.linalg.solve(phi.T @ phi + head.ridge * torch.eye(phi.shape[1]).double(), phi.T @ y)
    assert apart(head.weights, expected) < 1e-4


def test_the_automatic_width_follows_the_first_task_and_the_notes_say_so(
    make: Callable[..., Learner], data: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.methods.ridge.settings.WIDTHS", (8, 8192))
    tasks = [of_classes(data, 0, 0), of_classes(data, 1, 1, 2, 3, 4, 5)]
    widths = [1 << (2 * len(task.train) - 1).bit_length() for task in tasks]
    assert widths[0] < widths[1]
    found = []
    for settings in ({}, {"dimension": 300}):
        for order in (tasks, tasks[::-1]):
            learner = make(**settings)
            for task in order:
                learner.learn(task)
            notes = learner.method.notes["rail"]
            assert notes["dimension"] == len(head_of(learner).weights)
            found.append((notes["dimension"], notes["dimension_from"].partition(":")[0]))
    fixed = (300, "method.dimension")
    assert found == [(widths[0], "auto"), (widths[1], "auto"), fixed, fixed]


@pytest.mark.parametrize("form", ["sums", "recursive"])
def test_order_of_tasks_and_batch_size_change_nothing_but_the_order_of_columns(
    make: Callable[..., Learner], data: Table, form: str
) -> None:
    groups = [(0, 1), (2,), (3, 4, 5)]
    found = []
    for order, size in (((0, 1, 2), 8), ((2, 0, 1), 5), ((1, 2, 0), 100)):
        learner = make({"batch_size": size}, **FORMS[form])
        for place, number in enumerate(order):
            learner.learn(of_classes(data, place, *groups[number]))
        found.append(by_key(learner))
    assert apart(found[1], found[0]) < 1e-8
    assert apart(found[2], found[0]) < 1e-8


def test_a_class_that_two_tasks_share_accumulates(make: Callable[..., Learner], data: Table) -> None:
    first, second = of_classes(data, 0, 0, 1), of_classes(data, 1, 1, 2)
    half = [i for i, key in enumerate(first.train.column("class_key")) if key == "class-1"][::2]
    held = {first.train.ids[i] for i in half}
    first = replace(
        first, train=first.train.select([i for i, n in enumerate(first.train.ids) if n not in held])
    )
    rest = [i for i, n in enumerate(second.train.ids) if n in held or n not in first.train.ids]
    second = replace(second, train=second.train.select(rest))
    shared, joint = make(**FORMS["sums"]), make(**FORMS["sums"])
    shared.learn(first)
    shared.learn(second)
    joint.learn(of_classes(data, 0, 0, 1, 2))
    assert [key for key, _ in shared.method.structure()["classes"]] == ["class-0", "class-1", "class-2"]
    assert apart(by_key(shared), by_key(joint)) < 1e-8


def test_fourier_features_come_near_the_kernel() -> None:
    draw = torch.Generator().manual_seed(0)
    x = unit(torch.randn(40, 16, generator=draw))
    kernel = torch.exp(-0.5 * torch.cdist(x.double(), x.double()) ** 2)
    errors = []
    for width in (64, 4096):
        phi = Expansion("fourier", 16, width, 0.5, seed=0)(x)
        errors.append(float((phi @ phi.T - kernel).abs().max()))
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.08


def test_the_width_follows_the_data_and_the_ridge_the_width() -> None:
    settings = RailSettings()
    assert [settings.width(n, 512) for n in (1, 128, 129, 1600, 10**6)] == [256, 256, 512, 4096, 8192]
    assert RailSettings(expansion="none").width(1600, 512) == 512
    assert RailSettings(dimension=15000).penalty(15000) == 0.1
    # The same kernel machine at every width: outputs hardly change with it, which a fixed ridge would make them do.
    draw = torch.Generator().manual_seed(0)
    x, labels = unit(torch.randn(60, 16, generator=draw)), torch.arange(60) % 3
    found = {}
    for width in (300, 1200):
        for scaled in (True, False):
            ridge = settings.penalty(width) if scaled else 0.1
            head = Sums(Expansion("relu", 16, width, 0.1, seed=1), width, ridge)
            head.widen(3)
            feed(head, x, labels, 60)
            found[width, scaled] = head.outputs(x, torch.arange(3))
    assert apart(found[300, True], found[1200, True]) < apart(found[300, False], found[1200, False]) / 2


# -- predicting -----------------------------------------------------------------------------------------------


def spaces(data: Table) -> tuple[LabelSpace, torch.Tensor]:
    entries = tuple(e for i in range(6) for e in of_classes(data, i, i).classes or ())
    return LabelSpace(entries), torch.tensor([e.key in ("class-0", "class-1", "class-2") for e in entries])


def scored(
    learner: Learner, x: torch.Tensor, space: LabelSpace, bank: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores and cosines; without a `bank` of its own with the names' embeddings."""
    method = learner.method.eval()
    with torch.inference_mode():
        names = method.class_bank(space)["embedding"] if bank is None else bank
        return method.class_scores({"embedding": x}, space, {"embedding": names}), x @ names.T


@pytest.mark.parametrize("form", FORMS)
def test_without_fusion_it_is_zero_shot_bit_for_bit(
    make: Callable[..., Learner], data: Table, form: str
) -> None:
    learner = make(**FORMS[form], fusion=0.0)
    learner.learn(of_classes(data, 0, 0, 1, 2))
    space, _ = spaces(data)
    found, cosines = scored(learner, features(learner, data), space)
    assert torch.equal(found, cosines)


@pytest.mark.parametrize("form", FORMS)
def test_rows_whose_winner_was_not_learned_are_untouched_and_others_are_the_fused_row(
    make: Callable[..., Learner], data: Table, form: str
) -> None:
    learner = make(**FORMS[form])
    learner.learn(of_classes(data, 0, 0, 1, 2))
    space, learned = spaces(data)
    x = features(learner, data)
    # Untrained names all lie on one side of the pictures; with pictures for names every class wins somewhere.
    keys = data.column("class_key")
    names = x[[keys.index(key) for key in space.keys]]
    found, cosines = scored(learner, x, space, names)
    touched = learned[cosines.argmax(dim=1)]
    assert 0 < int(touched.sum()) < len(touched)
    assert torch.equal(found[~touched], cosines[~touched])
    scale = float(learner.method.backbone.logit_scale)
    probabilities = torch.softmax(scale * cosines.double(), dim=1)
    outputs = torch.zeros_like(probabilities)
    outputs[:, :3] = head_of(learner).outputs(x, torch.arange(3))
    expected = fuse(probabilities, outputs, learned, 0.8)
    assert torch.equal(found[touched].argsort(dim=1), expected[touched].argsort(dim=1))
    confident = torch.softmax(scale * found[touched].double(), dim=1)
    positive = expected[touched].clamp(min=0)
    assert torch.allclose(confident, positive / positive.sum(dim=1, keepdim=True), atol=1e-4)


def test_cosines_come_back_from_their_own_probabilities() -> None:
    cosines = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)).double() / 5
    for scale in (14.3, 100.0):
        # What is hardly possible at all is only kept in order.
        found = as_cosines(torch.softmax(scale * cosines, dim=1), cosines, scale)
        likely = torch.softmax(scale * cosines, dim=1) > 1e-3
        assert torch.allclose(found[likely], cosines[likely], atol=1e-5)
    wild = torch.tensor([[-0.4, -0.1, 0.0, 1e-9, 0.3, 1.2]]).double()
    found = as_cosines(wild, torch.zeros(1, 6), 100.0).float()
    assert (found.diff(dim=1) > 0).all()
    assert (found.abs() <= 1.01).all()


def test_what_a_label_space_does_not_offer_plays_no_part(make: Callable[..., Learner], data: Table) -> None:
    learner = make(**FORMS["sums"])
    learner.learn(of_classes(data, 0, 0, 1, 2))
    x = features(learner, data)
    new = LabelSpace(tuple(e for e in spaces(data)[0].entries if e.key in ("class-4", "class-5")))
    found, cosines = scored(learner, x, new)
    assert torch.equal(found, cosines)
    own = LabelSpace(tuple(e for e in spaces(data)[0].entries if e.key in ("class-0", "class-2")))
    found, _ = scored(learner, x, own)
    mine = [i for i, key in enumerate(data.column("class_key")) if key in ("class-0", "class-2")]
    right = torch.tensor([("class-0", "class-2").index(data.column("class_key")[i]) for i in mine])
    assert float((found[mine].argmax(dim=1) == right).double().mean()) > 0.9


def test_classes_are_known_by_key_and_a_typed_name_by_its_name(
    make: Callable[..., Learner], data: Table
) -> None:
    learner = make(**FORMS["sums"])
    learner.learn(of_classes(data, 0, 0, 1))
    x = features(learner, data)
    typed = LabelSpace(
        (ClassEntry("class 0", "class 0", ("a {}",)), ClassEntry("class 1", "class 1", ("a {}",)))
    )
    keyed = LabelSpace(of_classes(data, 0, 0, 1).classes or ())
    other = LabelSpace(tuple(replace(e, key=f"other/{e.key}", tasks=(3,)) for e in keyed.entries))
    assert torch.equal(scored(learner, x, typed)[0], scored(learner, x, keyed)[0])
    assert not torch.equal(*scored(learner, x, keyed))
    assert torch.equal(*scored(learner, x, other))


# -- as a method ----------------------------------------------------------------------------------------------


def test_each_picture_is_encoded_once_and_the_backbone_stays(
    make: Callable[..., Learner], data: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make(**FORMS["sums"])
    before = {k: v.clone() for k, v in learner.method.backbone.state_dict().items()}
    counts = {"image": 0, "steps": 0}
    encode = learner.method.backbone.encode_image

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        counts["image"] += len(pixels)
        return encode(pixels)

    monkeypatch.setattr(learner.method.backbone, "encode_image", counted)
    tasks: Sequence[Task] = [of_classes(data, i, 2 * i, 2 * i + 1) for i in range(3)]
    for task in tasks:
        learner.learn(task)
    assert counts["image"] == sum(len(task.train) for task in tasks)
    assert not any(p.requires_grad for p in learner.method.parameters())
    assert all(torch.equal(v, before[k]) for k, v in learner.method.backbone.state_dict().items())


def test_augmented_passes_draw_anew_and_none_is_said_to_leave_nothing(
    make: Callable[..., Learner], data: Table
) -> None:
    task = of_classes(data, 0, 0, 1)
    plain, drawn = make(form="dual"), make(form="dual", augmented=True, passes=2)
    for learner in (plain, drawn):
        learner.learn(task)
    kept, anew = head_of(plain), head_of(drawn)
    assert isinstance(kept, Dual)
    assert isinstance(anew, Dual)
    count = len(task.train)
    assert len(anew.samples) == 2 * count
    assert not torch.allclose(anew.samples[:count], anew.samples[count:], atol=1e-3)
    assert torch.allclose(kept.samples, features(plain, task.train), atol=1e-6)
    still = make({"augment": "none"}, form="dual", augmented=True)
    still.learn(task)
    (phase,) = still.plan(of_classes(data, 1, 2))
    assert "image_embedding" in phase.streams["main"].columns
    assert "augment=none" in phase.notes[0]
    without = make({"cache": False}, form="dual")
    without.learn(task)
    assert without.plan(task)[0].streams["main"].columns == ("image", "label")
    other = head_of(without)
    assert isinstance(other, Dual)
    assert torch.allclose(other.samples, kept.samples, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_learner_predicts_and_learns_on_the_same(
    make: Callable[..., Learner], data: Table, tmp_path: Path, form: str
) -> None:
    learner = make(**FORMS[form])
    learner.learn(of_classes(data, 0, 0, 1))
    found = Learner.load(learner.save(tmp_path / "saved").parents[1])
    space, _ = spaces(data)
    x = features(learner, data)
    assert json.loads(json.dumps(found.method.structure())) == learner.method.structure()
    assert torch.equal(scored(found, x, space)[0], scored(learner, x, space)[0])
    for each in (learner, found):
        each.learn(of_classes(data, 1, 2, 3))
    assert torch.equal(head_of(found).weights, head_of(learner).weights)
    assert found.method.notes == learner.method.notes


def test_twelve_tasks_of_one_class_each_in_batches_of_one(make: Callable[..., Learner], data: Table) -> None:
    learner = make({"batch_size": 1}, dimension=64)
    keys = sorted(set(data.column("concept")))[:12]
    for index, key in enumerate(keys):
        rows = [i for i, value in enumerate(data.column("concept")) if value == key][:2]
        columns = data.select(rows).arrow()
        place = columns.column_names.index("class_key")
        named = columns.set_column(place, "class_key", [[f"thing-{key}"] * len(rows)])
        entries = (ClassEntry(f"thing-{key}", f"thing {key}", ("{}",), (index,)),)
        learner.learn(Task(index, key, Table(named), classes=entries))
    assert head_of(learner).classes == 12
    assert torch.isfinite(head_of(learner).weights).all()
    space = LabelSpace(tuple(ClassEntry(k, n) for k, n in learner.method.structure()["classes"]))
    one = scored(learner, features(learner, data.select([0])), space)[0]
    many = scored(learner, features(learner, data), space)[0]
    assert int(one.argmax()) == int(many[0].argmax())
    assert torch.allclose(one.max(), many[0].max(), atol=1e-5)


def test_costs_are_those_of_the_buffers(make: Callable[..., Learner], data: Table) -> None:
    learner = make(**FORMS["sums"])
    bare = make().method.describe()
    assert learner.method.describe().bytes - bare.bytes == 8 * 200 * 200  # known before the first task
    learner.learn(of_classes(data, 0, 0, 1, 2))
    cost = learner.method.describe()
    kept = 200 * 200 + 200 * 32 + 2 * 200 * 3
    assert cost.stored_parameters - bare.stored_parameters == kept
    assert cost.bytes - bare.bytes == 8 * (200 * 200 + 2 * 200 * 3) + 4 * 200 * 32
    assert cost.active_parameters - bare.active_parameters == 200 * 32 + 200 * 3
    assert cost.trainable_parameters == 0
    assert "320,000 bytes once" in cost.growth_per_task


# -- refusals and runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trainable": ["text"]}, "trainable: rail solves"),
        ({"replay": {"kind": "reservoir"}}, "replay: rail solves"),
        ({"merge": {"kind": "wise-ft"}}, "merge: rail solves"),
        ({"penalties": {"lwf": {}}}, "penalties: rail solves"),
        ({"dimension": 0}, "dimension"),
        ({"ridge": 0}, "ridge"),
        ({"fusion": 1.1}, "fusion"),
    ],
)
def test_settings_that_mean_nothing_here_are_refused(
    make: Callable[..., Learner], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**settings)


def test_a_stream_of_captions_is_refused_before_the_run(micro_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="rail cannot learn from captions"):
        Run(micro_config("time", "method=rail"), QUIET)


def test_the_dual_form_refuses_more_than_it_may_keep(make: Callable[..., Learner], data: Table) -> None:
    learner = make(form="dual", limit=40)
    learner.learn(of_classes(data, 0, 0, 1))
    with pytest.raises(ConfigError, match=r"method\.limit: .* would exceed 40"):
        learner.learn(of_classes(data, 1, 2, 3))


def test_an_export_would_lack_the_regression(
    make: Callable[..., Learner], data: Table, tmp_path: Path
) -> None:
    learner = make(dimension=16)
    learner.learn(of_classes(data, 0, 0, 1))
    folder = learner.save(tmp_path / "saved").parents[1]
    with pytest.raises(ConfigError, match="a regression over 2 classes was learned"):
        run_export(str(folder), tmp_path / "exported")


def test_a_ridge_that_is_too_small_is_said(make: Callable[..., Learner], data: Table) -> None:
    with pytest.raises(ConfigError, match=r"method\.ridge: 1e-300"):
        make(form="dual", ridge=1e-300).learn(
            replace(of_classes(data, 0, 0), train=data.select([0, 0, 0, 0]))
        )


def test_a_run_keeps_what_zero_shot_knew_of_what_is_still_to_come(micro_config: Callable[..., Any]) -> None:
    runs = {
        name: execute(micro_config("classes", f"method={name}", output=name), progress=QUIET)
        for name in ("zero-shot", "rail", "rail-dual")
    }
    still = runs["zero-shot"]
    for name in ("rail", "rail-dual"):
        results = runs[name]
        assert results.rows[0].scores == still.rows[0].scores
        assert results.metrics["last"] > still.metrics["last"]
        assert results.rows[-1].notes["rail"]["classes"] == 6
        for column in results.columns:
            for row in range(len(results.rows)):
                own, before = (r.score(row, column.name, "own", "accuracy") for r in (results, still))
                if column.kind == "classification" and (column.task is None or column.task >= row):
                    assert own == before, "nothing of these classes was learned yet"
