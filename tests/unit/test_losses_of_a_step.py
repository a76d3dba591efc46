"""What a training step is made of: label smoothing, the model that weights are held to, which pictures are shown.

Each is written out here by hand from what the step was given, so that a setting that is dropped on the way is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import Batch, ClassEntry, Past, Progress, Task
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.base import Method
from everclip.methods.build import build_method
from everclip.methods.penalties.teachers import between
from everclip.models.backbone import load_backbone

Build = Callable[..., Method]
AT = Progress(0, "train", 0, 0, 10, 0)


@pytest.fixture
def build(micro_folder: Path) -> Build:
    """Return a function (**settings) -> method on the micro model."""

    def make(**settings: Any) -> Method:
        return build_method(MethodConfig(settings=settings), load_backbone(str(micro_folder / "model")))

    return make


@pytest.fixture
def tasks(micro_folder: Path) -> tuple[Task, Task]:
    """Two tasks with class names."""
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    names = list(dict.fromkeys(data.column("class_key")))
    classes = tuple(ClassEntry(k, k.replace("-", " ")) for k in names)
    return (
        Task(0, "first", data.select(range(24)), None, classes),
        Task(1, "second", data.select(range(24, 48)), None, classes),
    )


def smoothed(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    """Cross entropy against a target of which `smoothing` is spread over all classes; in double precision."""
    logs = torch.log_softmax(logits.double(), dim=1)
    classes = logs.shape[1]
    target = torch.full_like(logs, smoothing / classes)
    target[torch.arange(len(labels)), labels] += 1 - smoothing
    return float(-(target * logs).sum(dim=1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.9])
def test_the_loss_of_labels_is_smoothed_as_the_settings_say(
    build: Build, tasks: tuple[Task, Task], smoothing: float
) -> None:
    method = build(label_smoothing=smoothing)
    names = [entry.prompts()[0] for entry in tasks[0].classes or ()]
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(6, 3, 16, 16, generator=draw)
    labels = torch.randint(len(names), (6,), generator=draw)
    tokens = method.backbone.tokenise(names)
    batch: Batch = {"main": {"image": pixels, "label": labels, "class_tokens": tokens}}
    with torch.no_grad():
        found = method.eval()(batch, AT)["labels"]
        image, text = method.backbone.encode_image(pixels), method.backbone.encode_text(tokens)
        logits = method.backbone.logit_scale * image @ text.T
    assert float(found) == pytest.approx(smoothed(logits, labels, smoothing), rel=1e-4)
    other = smoothed(logits, labels, 0.5 if smoothing == 0 else 0.0)
    assert abs(float(found) - other) > 0.01  # or the setting would not be seen


@pytest.mark.parametrize("reference", ["initial", "task-start"])
def test_weights_are_held_to_the_named_model_where_both_models_are_kept(
    build: Build, tasks: tuple[Task, Task], reference: str
) -> None:
    # Merging looks back on the model that is not the penalty's.
    other = {"initial": {"kind": "running-mean", "wise_we": 0.9}, "task-start": {"kind": "wise-ft"}}[
        reference
    ]
    if other["kind"] == "wise-ft":
        other |= {"alpha": 0.5, "reference": "initial"}
    method = build(
        trainable=["image"],
        merge=other,
        penalties={"weight-constraint": {"weight": 2.0, "reference": reference}},
    )
    config = TrainingConfig(steps=2, batch_size=6, lr=1e-2, warmup=0, device="cpu", threads=1)
    initial = {
        n: p.detach().clone() for n, p in method.named_parameters() if p.requires_grad or "visual" in n
    }
    learner = Learner(method, config)
    learner.learn(tasks[0])
    start = {n: method.get_parameter(n).detach().clone() for n in initial}
    seen: list[tuple[float, dict[str, float]]] = []
    forward = method.forward

    def watched(batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        losses = forward(batch, progress)
        gaps = {
            name: sum(float((method.get_parameter(n).detach() - held[n]).square().sum()) for n in held)
            for name, held in (("initial", initial), ("task-start", start))
        }
        seen.append((float(losses["weight-constraint"].detach()), gaps))
        return losses

    method.forward = watched  # type: ignore[method-assign]
    learner.learn(tasks[1])
    assert len(seen) == 2
    for loss, gaps in seen:
        assert loss == pytest.approx(2 * gaps[reference], rel=1e-4, abs=1e-9)
    last = seen[-1][1]
    assert last["initial"] != pytest.approx(last["task-start"], rel=0.1)


@pytest.mark.parametrize("penalty", ["lwf", "lwf-vr"])
def test_pictures_of_the_own_stream_are_those_of_evaluation_and_the_tasks_are_augmented(
    build: Build, tasks: tuple[Task, Task], penalty: str
) -> None:
    method = build(penalties={penalty: {"images": "own"}})
    learner = Learner(method, TrainingConfig(steps=3, batch_size=8, device="cpu", threads=1))
    maker, task = learner.engine.maker, tasks[0]
    assert maker.augment is not None
    (phase,) = method.phases(task, Past(training=learner.training))
    own = phase.streams[penalty]
    assert [source.table.ids for source in own.sources] == [task.train.ids]
    place = {key: i for i, key in enumerate(task.train.ids)}
    changed = 0
    for step in range(3):
        batch, main = maker.batch(own, penalty, step), maker.batch(phase.streams["main"], "main", step)
        for key, pixels in zip(batch["id"], batch["image"], strict=True):
            assert torch.equal(pixels, method.backbone.preprocess(maker.store.get(task.train, place[key])))
        plain = [method.backbone.preprocess(maker.store.get(task.train, place[key])) for key in main["id"]]
        changed += sum(not torch.equal(a, b) for a, b in zip(main["image"], plain, strict=True))
    assert changed > 12


def test_a_penalty_is_told_of_the_beginning_and_the_end_of_a_task(
    build: Build, tasks: tuple[Task, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []
    method, past = build(penalties={"weight-constraint": {}}), Past(training=TrainingConfig(steps=1))
    (penalty,) = method.penalties
    for name in ("begin_task", "end_task"):
        monkeypatch.setattr(penalty, name, lambda *given, name=name: told.append((name, *given)))
    method.begin_task(tasks[0], past)
    method.end_task(tasks[0], past, lambda: {})
    assert told == [(name, method.backbone, tasks[0], past) for name in ("begin_task", "end_task")]


@pytest.mark.parametrize(
    ("trainable", "labelled", "columns"),
    [
        (("image",), True, ("image", "class_embedding")),
        (("text",), True, ("image_embedding", "label")),
        (("image",), False, ("image", "text_embedding")),
        (("image", "text"), False, ("image", "tokens")),
    ],
)
def test_the_stream_of_a_phase_brings_embeddings_for_a_frozen_tower(
    build: Build,
    tasks: tuple[Task, Task],
    trainable: tuple[str, ...],
    labelled: bool,
    columns: tuple[str, ...],
) -> None:
    method, task = build(trainable=trainable), tasks[0] if labelled else Task(0, "captions", tasks[0].train)
    captions = {"template_probability": 0, "keyword_probability": 0}
    given = TrainingConfig(steps=1, batch_size=7, augment=None, captions=captions)
    (phase,) = method.phases(task, Past(training=given))
    stream = phase.streams["main"]
    assert set(columns) <= set(stream.columns)
    assert (stream.batch_size, stream.classes) == (7, task.classes)
    plain = method.phases(task, Past(training=given.model_copy(update={"cache": False})))[0].streams["main"]
    assert plain.columns == (("image", "label") if labelled else ("image", "tokens"))


def test_a_teacher_answers_in_the_precision_of_the_student(build: Build, tasks: tuple[Task, Task]) -> None:
    method = build(penalties={"feature-distill": {"reference": "initial"}})
    assert method.teacher_of("initial").logit_scale.dtype == torch.float32
    method.double()
    teacher = method.teacher_of("initial")
    assert {p.dtype for p in teacher.parameters()} == {torch.float64}
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teacher_between_is_named_by_its_share_and_the_initial_one_by_its_name() -> None:
    assert between(0) == "initial"
    assert len({between(0), between(0.25), between(0.5), between(1)}) == 4
