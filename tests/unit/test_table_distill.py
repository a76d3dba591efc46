"""Distillation from tables of features: the loss written out, the head that trains beside the model, and the errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_penalties import AT, begun, move

import everclip
from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import ClassEntry, Past, Reference, Task
from everclip.data.table import Table
from everclip.errors import CheckpointError, ConfigError, DataError
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.methods.slots import PENALTY_MODULES, SlotMethod
from everclip.models.backbone import load_backbone
from everclip.training.watching import Cursor, Watcher

Build = Callable[..., SlotMethod]
HEAD = f"{PENALTY_MODULES}table-distill"


@pytest.fixture
def build(micro_folder: Path) -> Build:
    """Return a function (table-distill settings, **method settings) -> method on the micro model."""

    def make(penalty: dict[str, Any], **settings: Any) -> SlotMethod:
        settings |= {"penalties": {"table-distill": penalty}}
        method = build_method(MethodConfig(settings=settings), load_backbone(str(micro_folder / "model")))
        assert isinstance(method, SlotMethod)
        return method

    return make


@pytest.fixture
def task(micro_folder: Path) -> Task:
    return Task(0, "first", Table(pq.read_table(micro_folder / "data.parquet")).select(range(48)))


@pytest.fixture
def labelled(task: Task) -> Task:
    keys = list(dict.fromkeys(task.train.column("class_key")))
    classes = tuple(ClassEntry(k, k.replace("-", " "), ("a {}",)) for k in keys)
    return Task(0, "labels", task.train, classes=classes)


def learner_of(method: SlotMethod, **training: Any) -> Learner:
    settings = {
        "steps": 4,
        "batch_size": 8,
        "lr": 1e-3,
        "warmup": 0,
        "device": "cpu",
        "workers": 0,
    } | training
    return Learner(method, TrainingConfig.model_validate(settings))


def features_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    rows = pq.read_table(path).to_pydict()
    return {k: np.array(v, dtype=np.float64) for k, v in zip(rows["key"], rows["feature"], strict=True)}


# -- numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["cosine", "squared"])
@pytest.mark.parametrize("kind", ["captions", "labels"])
def test_the_loss_is_the_mean_distance_to_the_features(
    build: Build, task: Task, labelled: Task, micro_folder: Path, kind: str, distance: str
) -> None:
    paths = {side: micro_folder / f"{side}s.parquet" for side in ("image", "text")}
    named = {side: str(path) for side, path in paths.items()}
    method = build({**named, "distance": distance, "weight": 2})
    batch = begun(method, labelled if kind == "labels" else task)
    main = batch["main"]
    move(method)
    found = method(batch, AT)["table-distill"]
    texts = main["class_tokens"] if kind == "labels" else main["tokens"]
    names = [c.name for c in labelled.classes or ()] if kind == "labels" else main["caption"]
    if kind == "captions":
        of_row = dict(zip(task.train.ids, task.train.column("caption"), strict=True))
        names = [of_row[row] for row in main["id"]]
    expected = 0.0
    with torch.no_grad():
        for side, keys, encoded in (
            ("image", main["id"], method.backbone.encode_image(main["image"])),
            ("text", names, method.backbone.encode_text(texts)),
        ):
            weight = method.get_parameter(f"{HEAD}.{side}.weight").double().numpy()
            table = features_of(paths[side])
            for row, key in zip(encoded.double().numpy(), keys, strict=True):
                mapped, unit = weight @ row, table[key] / np.linalg.norm(table[key])
                cosine = mapped @ unit / np.linalg.norm(mapped)
                gap = 1 - cosine if distance == "cosine" else ((mapped - unit) ** 2).sum()
                expected += 2 * gap / len(keys)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_the_gradient_is_that_of_the_loss(build: Build, task: Task, micro_folder: Path) -> None:
    method = build({"image": str(micro_folder / "images.parquet")})
    batch = begun(method, task)
    head = method.get_parameter(f"{HEAD}.image.weight")
    norm = method.get_parameter("backbone.clip.visual.ln_post.weight")
    method(batch, AT)["table-distill"].backward()

    def lost() -> float:
        with torch.no_grad():
            return float(method(batch, AT)["table-distill"].double())

    for parameter in (head, norm):
        assert parameter.grad is not None
        draw = torch.Generator().manual_seed(0)
        for _ in range(3):
            way = torch.randn(parameter.shape, generator=draw)
            step = 1e-2 / way.norm()
            sides = []
            for sign in (1, -2, 1):
                parameter.data.add_(sign * step * way)
                sides.append(lost())
            slope = (sides[0] - sides[1]) / (2 * float(step))
            assert slope == pytest.approx(float((parameter.grad * way).sum()), rel=0.02, abs=2e-3)


def test_without_a_head_the_loss_is_zero_at_the_own_embeddings(
    build: Build, task: Task, tmp_path: Path
) -> None:
    backbone = build({"weight": 0}).backbone
    learner = Learner.create(backbone.name, training={"device": "cpu"})
    keys = task.train.identities()
    found = learner.encode([task.train.value("image", i) for i in range(len(task.train))])["images"]
    path = everclip.write_feature_table(tmp_path / "own.parquet", keys, 3 * found, "float32")
    method = build({"image": str(path), "head": "none"})
    past = Past(training=TrainingConfig(steps=3, batch_size=5, augment=None))
    method.begin_task(task, past)
    assert not any(name.startswith(PENALTY_MODULES) for name, _ in method.named_parameters())
    learner = learner_of(method, augment=None)
    (phase,) = learner.plan(task)
    batch = {"main": learner.engine.maker.batch(phase.streams["main"], "0/train", 0)}
    method.train()
    assert abs(method(batch, AT)["table-distill"].item()) < 1e-6
    move(method)
    assert method(batch, AT)["table-distill"].item() > 1e-4


def test_the_student_moves_towards_a_linear_image_of_the_table(
    build: Build, task: Task, tmp_path: Path
) -> None:
    """The teacher knows groups that the captions do not name; they then lead the student's embeddings."""
    keys, draw = task.train.identities(), np.random.default_rng(0)
    codes = draw.standard_normal((4, 4))[
        (draw.permutation(8) // 2)[list(map(int, task.train.column("concept")))]
    ]
    path = everclip.write_feature_table(tmp_path / "codes.parquet", keys, codes)

    def unexplained(weight: float) -> float:
        method = build({"image": str(path), "weight": weight})
        learner = learner_of(method, steps=80, batch_size=24, lr=3e-3, augment=None)
        learner.learn(task)
        pictures = [task.train.value("image", i) for i in range(len(task.train))]
        found, wanted = learner.encode(pictures)["images"].double().numpy(), codes - codes.mean(0)
        leading = np.linalg.svd(found - found.mean(0), full_matrices=False)[0][:, :4]
        return float(((wanted - leading @ (leading.T @ wanted)) ** 2).sum() / (wanted**2).sum())

    assert unexplained(100.0) < 0.3 * unexplained(0.0)


def test_the_head_trains(build: Build, task: Task, micro_folder: Path) -> None:
    method = build({"image": str(micro_folder / "images.parquet"), "weight": 3})
    logs: list[float] = []

    class Follow(Watcher):
        def report(self, logs_of: Any) -> None:
            logs.extend(float(log.losses["table-distill"]) for log in logs_of)

    learner = learner_of(method, steps=40, lr=5e-3, augment=None)
    learner.learn(task, watcher=Follow())
    assert np.mean(logs[-5:]) < 0.8 * np.mean(logs[:5])
    assert f"{HEAD}.image.weight" in method.trainable


# -- parts of a method ----------------------------------------------------------------------------------------


def test_the_head_depends_on_the_seed_alone(micro_folder: Path, task: Task) -> None:
    def head(seed: int) -> torch.Tensor:
        penalty = {"image": str(micro_folder / "images.parquet")}
        config = MethodConfig(settings={"penalties": {"table-distill": penalty}})
        method = build_method(config, load_backbone(str(micro_folder / "model")), seed)
        torch.rand(seed + 1)
        method.begin_task(task, Past())
        return method.get_parameter(f"{HEAD}.image.weight").detach()

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))
    assert head(1).abs().max() <= 32**-0.5


def test_a_head_is_no_part_of_predictions_merging_or_other_penalties(
    build: Build, task: Task, micro_folder: Path
) -> None:
    penalty = {"image": str(micro_folder / "images.parquet")}
    method = build(penalty, merge={"kind": "wise-ft", "alpha": 0.0})
    plain = build({"weight": 0})
    learner = learner_of(method)
    assert method.describe().active_parameters == plain.describe().active_parameters
    learner.learn(task)
    # Alpha 0 undoes all learning; the head keeps what it has learned.
    assert all(
        torch.equal(v, plain.state_dict()[k])
        for k, v in method.backbone.state_dict(prefix="backbone.").items()
    )
    drawn = build(penalty)
    drawn.begin_task(task, Past())
    name = f"{HEAD}.image.weight"
    assert not torch.equal(method.get_parameter(name), drawn.get_parameter(name))
    cost = method.describe()
    assert cost.active_parameters == plain.describe().active_parameters
    assert cost.trainable_parameters == plain.describe().trainable_parameters + 8 * 32
    assert cost.stored_parameters >= plain.describe().stored_parameters + 8 * 32


def test_what_a_task_will_hold_is_counted_before_it(build: Build, task: Task, micro_folder: Path) -> None:
    method = build({side: str(micro_folder / f"{side}s.parquet") for side in ("image", "text")})
    assert method.describe().held_during_task == "modules of table-distill"  # the tables are not read yet
    method.check_task(task)
    before, size = method.describe(), 32 * (8 + 5)
    assert before.held_during_task == f"modules of table-distill: {size:,}"
    method.begin_task(task, Past())
    inside = method.describe()
    assert inside.stored_parameters == before.stored_parameters + before.task_parameters
    assert inside.trainable_parameters == before.trainable_parameters
    assert inside.active_parameters == before.active_parameters
    assert inside.held_during_task == "nothing more"


@pytest.mark.parametrize("merge", [{"kind": "running-mean"}, {"kind": "wise-ft", "reference": "initial"}])
def test_it_stands_beside_other_slots(build: Build, task: Task, micro_folder: Path, merge: Any) -> None:
    penalties = {
        "weight-constraint": {},
        "lwf": {},
        "table-distill": {"image": str(micro_folder / "images.parquet")},
    }
    config = MethodConfig(settings={"penalties": penalties, "merge": merge, "replay": {"kind": "reservoir"}})
    method = build_method(config, load_backbone(str(micro_folder / "model")))
    assert isinstance(method, SlotMethod)
    learner = learner_of(method, layer_decay=0.7)
    learner.learn(task)
    learner.learn(Task(1, "second", task.train))
    assert learner.learned == {0, 1}


def test_a_frozen_tower_needs_no_table_and_a_note_says_so(
    build: Build, task: Task, micro_folder: Path
) -> None:
    tables = {side: str(micro_folder / f"{side}s.parquet") for side in ("image", "text")}
    method = build({**tables, "image": "nowhere.parquet"}, trainable=["text"])
    learner = learner_of(method, augment=None)
    (phase,) = learner.plan(task)
    assert "table-distill: image has no effect: the image tower does not train" in phase.notes
    assert "image_embedding" in phase.streams["main"].columns  # from the cache
    learner.learn(task)
    assert [n for n in method.state_dict() if n.startswith(HEAD)] == [f"{HEAD}.text.weight"]


# -- reference images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", ["reference", "both"])
def test_reference_images_are_compared_too(
    build: Build, task: Task, micro_folder: Path, samples: str
) -> None:
    method = build(
        {"image": str(micro_folder / "images.parquet"), "samples": samples, "reference_batch_size": 3}
    )
    assert method.reference_needs == {"images"}
    own, others = (Task(0, "own", task.train.select(range(24)))), task.train.select(range(24, 48))
    batch = begun(method, own, reference=Reference(others))
    assert set(batch) == {"main", "table-distill"}
    assert len(batch["table-distill"]["image_id"]) == 3
    assert set(batch["table-distill"]["image_id"]) <= set(others.identities())
    assert ("image_id" in batch["main"]) == (samples == "both")
    move(method)
    found = method(batch, AT)["table-distill"]
    weight = method.get_parameter(f"{HEAD}.image.weight").detach()
    table, expected = features_of(micro_folder / "images.parquet"), 0.0
    for name in ("main", "table-distill") if samples == "both" else ("table-distill",):
        keys = batch[name]["id"]
        with torch.no_grad():
            mapped = method.backbone.encode_image(batch[name]["image"]) @ weight.T
        units = torch.nn.functional.normalize(mapped, dim=1).double().numpy()
        cosines = [u @ table[k] / np.linalg.norm(table[k]) for u, k in zip(units, keys, strict=True)]
        expected += 1 - float(np.mean(cosines))
    assert found.item() == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in method.backbone.clip.visual.parameters()
    )


def test_reference_images_need_features_and_must_exist(
    build: Build, task: Task, micro_folder: Path, tmp_path: Path
) -> None:
    others = task.train.select(range(24, 48))
    few = {"image": some(micro_folder, tmp_path, 40), "samples": "both"}
    own = Task(0, "own", task.train.select(range(24)))
    with pytest.raises(DataError, match="no feature for 8 of 24 images"):
        begun(build(few), own, reference=Reference(others))
    with pytest.raises(ConfigError, match=r"samples=both: needs reference images.*samples=batch"):
        begun(build(few), own)
    method = build(few | {"missing": "skip"})
    begun(method, own, reference=Reference(others))
    (note,) = (n for n in method.penalties[0].notes if "skipped" in n)
    assert note == "table-distill: 8 of 48 images have no feature in some.parquet and are skipped"


# -- missing features -----------------------------------------------------------------------------------------


def some(folder: Path, to: Path, count: int) -> str:
    rows = pq.read_table(folder / "images.parquet").slice(0, count)
    pq.write_table(rows, to / "some.parquet")
    return str(to / "some.parquet")


def test_a_missing_feature_is_an_error_before_training(
    build: Build, task: Task, micro_folder: Path, tmp_path: Path
) -> None:
    method = build({"image": some(micro_folder, tmp_path, 46)})
    match = (
        r"table-distill\.image: .*some\.parquet has no feature for 2 of 48 images of .*first: '7-4', '7-5'"
    )
    with pytest.raises(DataError, match=match):
        method.check_task(task)
    with pytest.raises(DataError, match="missing=skip"):
        learner_of(method).learn(task)


def test_replayed_rows_need_features_too(
    build: Build, task: Task, micro_folder: Path, tmp_path: Path
) -> None:
    path = Path(some(micro_folder, tmp_path, 48))
    method = build({"image": str(path)}, replay={"kind": "all"})
    learner = learner_of(method, steps=1)
    learner.learn(Task(0, "first", task.train.select(range(24))))
    everclip.write_feature_table(path, task.train.identities()[24:], np.ones((24, 8)))
    method.penalties[0]._tables.clear()  # type: ignore[attr-defined]
    second = Task(1, "second", task.train.select(range(24, 48)))
    method.check_task(second)
    with pytest.raises(DataError, match="no feature for 24 of 24 images"):
        learner.learn(second)


def test_skipped_rows_add_nothing_and_are_counted(
    build: Build, task: Task, micro_folder: Path, tmp_path: Path
) -> None:
    few = {"image": some(micro_folder, tmp_path, 24), "missing": "skip"}
    method, whole = build(few), build({"image": str(micro_folder / "images.parquet")})
    batch = begun(method, task, size=16)
    begun(whole, task, size=16)
    known = [int(name.partition("-")[0]) < 4 for name in batch["main"]["id"]]
    assert 0 < sum(known) < 16
    with torch.no_grad():
        student = whole.backbone.encode_image(batch["main"]["image"])
        unit = torch.nn.functional.normalize(student @ whole.get_parameter(f"{HEAD}.image.weight").T, dim=1)
        table = features_of(micro_folder / "images.parquet")
        features = torch.tensor(np.array([table[k] / np.linalg.norm(table[k]) for k in batch["main"]["id"]]))
        gaps = 1 - (unit.double() * features).sum(1)
    found = method(batch, AT)["table-distill"].item()
    assert found == pytest.approx(float((gaps * torch.tensor(known)).sum() / 16), rel=1e-4)
    (phase,) = method.phases(task, Past())
    assert phase.notes[-1] == "table-distill: 24 of 48 images have no feature in some.parquet and are skipped"
    learner_of(method).learn(task)
    assert method.notes["table-distill"] == {"image": {"without_feature": 24, "of": 48}}


# -- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("penalty", "match"),
    [
        ({}, "`image` or `text`"),
        ({"image": "a.parquet", "reference": "initial"}, "reference"),
        ({"imgae": "a.parquet"}, "Did you mean 'image'"),
        ({"image": "a.parquet", "head": "mlp"}, r"table-distill\.head"),
        ({"text": "a.parquet", "samples": "both"}, "samples=both compares reference images"),
    ],
)
def test_settings_that_do_not_fit_are_answered(build: Build, penalty: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(penalty)


def test_a_table_that_does_not_fit_is_named(build: Build, task: Task, micro_folder: Path) -> None:
    method = build({"image": str(micro_folder / "none.parquet")})
    with pytest.raises(ConfigError, match=r"table-distill\.image: there is no file .*none\.parquet"):
        method.check_task(task)
    method = build({"image": str(micro_folder / "images.parquet"), "head": "none"})
    with pytest.raises(ConfigError, match="8 values, and embeddings of the model 32"):
        method.check_task(task)


# -- resume ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "none"])
def test_a_stopped_task_continues_with_the_same_head_and_the_same_table(
    build: Build, task: Task, tmp_path: Path, head: str
) -> None:
    class Stop(Watcher):
        saved: Any = None

        def after_step(self, log: Any) -> bool:
            return bool(log.step == 1)

        def save(self, cursor: Cursor, optimiser: Any) -> None:
            tensors = {k: v.clone() for k, v in learner.tensors(optimiser()).items()}
            Stop.saved = tensors, json.loads(json.dumps(learner.state(cursor)))

    draw, sides = (
        np.random.default_rng(0),
        {"image": task.train.identities(), "text": task.train.column("caption")},
    )
    tables: dict[str, Any] = {"head": head}
    for side, keys in sides.items():
        once = list(dict.fromkeys(keys))
        path = everclip.write_feature_table(tmp_path / side, once, draw.standard_normal((len(once), 32)))
        tables[side] = str(path)
    learner = learner_of(build(tables))
    learner.learn(task, watcher=Stop())
    resumed = learner_of(build(tables))
    resumed.learn(task, resumed.restore(*Stop.saved))
    one, two = learner.method.state_dict(), resumed.method.state_dict()
    assert (f"{HEAD}.text.weight" in one) == (head == "linear")
    assert all(torch.equal(one[k], two[k]) for k in one)
    everclip.write_feature_table(tables["text"], once, draw.standard_normal((len(once), 32)))
    changed = learner_of(build(tables))
    with pytest.raises(CheckpointError, match=r"table-distill\.text: .* has changed since the task began"):
        changed.learn(task, changed.restore(*Stop.saved))
    assert (
        learner.method.slot_structure().get("table-distill", {}).get("tables") is None
    )  # between tasks it may
