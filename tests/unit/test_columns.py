"""A tower that does not train is encoded once: the same numbers, and never where its input is drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import MethodConfig, TrainingConfig
from everclip.contracts import Batch, ClassEntry, Progress, Task
from everclip.data.table import Table
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.methods.frozen import cached_columns
from everclip.methods.settings import SlotSettings
from everclip.methods.slots import SlotMethod
from everclip.models.backbone import load_backbone
from everclip.run import Run
from everclip.training.progress import Progress as Shown
from everclip.training.trial import measure_seconds

TEXT, IMAGE = ("text", "logit-scale"), ("image", "logit-scale")


@pytest.fixture
def tasks(micro_folder: Path) -> tuple[Task, Task]:
    """Two tasks of 20 samples, with captions and without classes."""
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    return Task(0, "first", data.select(range(20))), Task(1, "second", data.select(range(40, 60)))


def labelled(task: Task) -> Task:
    keys = sorted(set(task.train.column("class_key")))
    return replace(task, classes=tuple(ClassEntry(k, k, ("a {}",)) for k in keys))


@pytest.fixture
def make(micro_folder: Path) -> Callable[..., Learner]:
    """Return a function (trainable, training settings, **method settings) -> learner on the two-layer CLIP."""

    def build(trainable: Any = TEXT, training: dict[str, Any] | None = None, **settings: Any) -> Learner:
        method = build_method(
            MethodConfig(name="finetune", settings={"trainable": trainable, **settings}),
            load_backbone(str(micro_folder / "model")),
        )
        given = {"steps": 6, "batch_size": 8, "lr": 1e-2, "warmup": 0, "device": "cpu", "augment": "none"}
        return Learner(method, TrainingConfig(**{**given, **(training or {})}))

    return build


def encoded(learner: Learner) -> dict[str, int]:
    """Count from now on what each tower encodes."""
    counts = {"image": 0, "text": 0}
    backbone = learner.method.backbone
    for side in counts:
        inner = getattr(backbone, f"encode_{side}")

        def counting(values: torch.Tensor, *how: Any, of: str = side, inner: Any = inner) -> torch.Tensor:
            counts[of] += len(values)
            return inner(values, *how)

        setattr(backbone, f"encode_{side}", counting)
    return counts


def learn(learner: Learner, *tasks: Task) -> dict[str, torch.Tensor]:
    for task in tasks:
        learner.learn(task)
    return {k: v.clone() for k, v in learner.method.state_dict().items()}


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max(float((one[k] - two[k]).abs().max()) for k in one)


CASES: dict[str, tuple[bool, Any, dict[str, Any]]] = {
    "image, captions": (False, TEXT, {}),
    "image, labels": (True, TEXT, {}),
    "text, captions": (False, IMAGE, {}),
    "text, labels": (True, IMAGE, {}),
    "both": (False, ("logit-scale",), {}),
    "lora in the other tower": (False, [{"lora": {"tower": "text"}}], {}),
    "image, replay": (False, TEXT, {"replay": {"kind": "reservoir", "size": 7}}),
    "image, lwf": (True, TEXT, {"penalties": {"lwf": {"weight": 1.0, "reference": "initial"}}}),
    "text, feature-distill": (False, IMAGE, {"penalties": {"feature-distill": {"weight": 1.0}}}),
    "text, lwf, labels": (True, IMAGE, {"penalties": {"lwf": {"weight": 1.0}}}),
    "image, lwf on its own pictures": (False, TEXT, {"penalties": {"lwf": {"weight": 1.0, "images": "own"}}}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_without_a_cache(
    case: str, make: Callable[..., Learner], tasks: tuple[Task, Task]
) -> None:
    with_classes, trainable, settings = CASES[case]
    stream = tuple(labelled(t) for t in tasks) if with_classes else tasks
    sgd = {"optimiser": "sgd", "lr": 0.1, "momentum": 0.0}  # AdamW blows rounding up to whole steps
    plain = make(trainable, {**sgd, "cache": False}, **settings)
    cached = make(trainable, sgd, **settings)
    start = {k: v.clone() for k, v in plain.method.state_dict().items()}
    columns = cached.plan(stream[0])[0].streams["main"].columns
    assert any(column.endswith("_embedding") for column in columns)
    one, two = learn(plain, *stream), learn(cached, *stream)
    assert apart(start, one) > 1e-3
    assert apart(one, two) < 1e-5


def test_each_picture_and_caption_is_encoded_once(
    make: Callable[..., Learner], tasks: tuple[Task, Task]
) -> None:
    learner = make()
    counts = encoded(learner)
    learn(learner, tasks[0])
    assert counts == {"image": 20, "text": 48}
    learner = make(IMAGE)
    counts = encoded(learner)
    learn(learner, tasks[0])
    assert counts == {"image": 48, "text": len(set(tasks[0].train.column("caption")))}
    learner = make(IMAGE)
    counts = encoded(learner)
    learn(learner, labelled(tasks[0]))
    assert counts == {"image": 48, "text": len(labelled(tasks[0]).classes or ())}


@pytest.mark.parametrize(
    ("trainable", "training", "said"),
    [
        (
            TEXT,
            {"augment": {"crop_min": 1.0, "ratio": 1.0}},
            "training.augment changes every image at random",
        ),
        (IMAGE, {"captions": {"keyword_probability": 0.5}}, "training.captions changes captions at random"),
        (IMAGE, {"captions": {"templates": ["a {}"], "template_probability": 0.5}}, "training.captions"),
        (("image", "text"), {}, None),
        (TEXT, {"cache": False, "augment": {}}, None),
    ],
)
def test_what_is_drawn_anew_is_not_cached_and_the_log_says_so_once(
    trainable: Any, training: dict[str, Any], said: str | None, make: Callable[..., Learner], tasks: Any
) -> None:
    learner = make(trainable, training)
    log: list[str] = []
    learner.engine.report_to(log.append)
    assert not any("embedding" in c for c in learner.plan(tasks[0])[0].streams["main"].columns)
    learn(learner, *tasks)
    assert len(log) == (said is not None)
    assert said is None or said in log[0]


def test_augment_none_is_the_transform_of_evaluation(make: Callable[..., Learner], tasks: Any) -> None:
    learner = make(("image", "text"))
    stream = learner.plan(tasks[0])[0].streams["main"]
    batch = learner.engine.maker.batch(stream, "any", 0)
    samples_of_step = learner.engine.maker.samples_of_step(stream, "any", 0)
    expected = [learner.method.backbone.preprocess(learner.store.get(*place)) for place in samples_of_step]
    assert torch.equal(batch["image"], torch.stack(expected))


def test_blocks_and_places_do_not_change_the_bits(
    make: Callable[..., Learner], tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.features.service.BLOCK", 6)
    replay = {"replay": {"kind": "reservoir", "size": 7}}
    expected = learn(make(**replay), *tasks)
    spilling = make(**replay)
    spilling.features.memory, spilling.features.folders.own = 0, tmp_path / "own"
    seen: list[int] = []
    spilling.method.after_step = lambda p: seen.append(len(list((tmp_path / "own").glob("*.safetensors"))))  # type: ignore[method-assign]
    assert apart(learn(spilling, *tasks), expected) == 0
    assert seen == [1] * 6 + [2] * 6
    assert list((tmp_path / "own").iterdir()) == []
    nowhere = make(**replay)
    nowhere.features.memory = 0
    assert apart(learn(nowhere, *tasks), expected) == 0


def test_a_shared_folder_serves_the_next_run_and_a_damaged_file_is_made_again(
    make: Callable[..., Learner], tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[dict[str, torch.Tensor], int, list[str]]:
        learner, log = make(), []
        learner.features.folders.say = log.append
        learner.features.folders.shared = tmp_path
        counts = encoded(learner)
        return learn(learner, tasks[0]), counts["image"], log

    first, count, _ = run()
    assert count == 20
    again, count, log = run()
    assert (apart(first, again), count, log) == (0, 0, [])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    again, count, log = run()
    assert (apart(first, again), count) == (0, 20)
    assert "damaged" in log[0]
    # Other data, another tower: another file.
    other = make()
    other.features.folders.shared = tmp_path
    learn(other, tasks[1])
    with torch.no_grad():
        other.method.backbone.clip.visual.proj.add_(1)
    learn(other, replace(tasks[0], index=2))
    assert len(list(tmp_path.iterdir())) == 3
    # Other rules of decoding, and so other pixels of the same files.
    monkeypatch.setattr("everclip.features.encoder.RULES", 0)
    assert run()[1] == 20


def test_a_tower_that_a_phase_in_between_trained_is_asked_again(
    make: Callable[..., Learner], tasks: Any
) -> None:
    learner = make()
    learner.method.begin_task(tasks[0], learner.past())
    streams = learner.plan(tasks[0])[0].streams
    columns = learner.engine.columns

    def embeddings() -> torch.Tensor:
        columns.prepare(learner.method, streams)
        batch: dict[str, dict[str, Any]] = {name: {} for name in streams}
        columns.add(batch, streams, "scope", 0)
        found: torch.Tensor = batch["main"]["image_embedding"]
        return found

    counts = encoded(learner)
    before = embeddings()
    assert torch.equal(embeddings(), before)
    assert counts["image"] == len(tasks[0].train)
    with torch.no_grad():
        learner.method.backbone.clip.visual.proj.neg_()
    assert torch.equal(embeddings(), -before)


class Own(SlotMethod):
    """A method that reads pixels itself, as methods from before did."""

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        return {"own": self.backbone.encode_image(batch["main"]["image"]).sum() + self.backbone.logit_scale}


def test_a_forward_of_ones_own_gets_pixels(micro_folder: Path, tasks: Any) -> None:
    method = Own(load_backbone(str(micro_folder / "model")), SlotSettings(trainable=TEXT))
    assert not Own.reads_embeddings
    config = TrainingConfig(steps=2, batch_size=8, device="cpu", augment=None)
    learn(Learner(method, config), tasks[0])


def test_a_plan_measures_a_cached_step_without_encoding_the_task(
    make: Callable[..., Learner], tasks: Any
) -> None:
    learner = make()
    counts = encoded(learner)
    learner.method.begin_task(tasks[0], learner.past())
    assert measure_seconds(learner.engine, learner.method, learner.plan(tasks[0])[0], 60.0) > 0
    assert counts["image"] == 2 + 2 + 8  # two small tries and one batch, of 20 samples


@pytest.mark.parametrize("kind", ["time", "classes"])
def test_a_run_leaves_no_file_behind(kind: str, micro_config: Callable[..., Any]) -> None:
    config = micro_config(kind, "method.trainable=[text]", "training.augment=none")
    run = Run.of(config, Shown(quiet=True))
    run.learner.features.memory = 0
    assert run.execute().status == "finished"
    assert list((Path(config.output) / "features").iterdir()) == []


@pytest.mark.parametrize("augment", ["none", "crop"])
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("frozen", [(), ("image",), ("text",), ("image", "text")])
def test_what_is_cached_of_a_frozen_tower_and_why_not(
    frozen: tuple[str, ...], drawn: bool, augment: str
) -> None:
    captions = {"keyword_probability": 0.5 if drawn else 0.0, "template_probability": 0.0}
    given = {} if augment == "crop" else {"augment": "none"}
    training = TrainingConfig(steps=1, captions=captions, cache=True, **given)  # type: ignore[arg-type]
    assert (training.augment is None) == (augment == "none")
    found, reasons = cached_columns(("image", "tokens", "label"), frozen, training)
    image, text = "image" in frozen, "text" in frozen
    cached = (
        "image_embedding" if image and augment == "none" else "image",
        "text_embedding" if text and not drawn else "tokens",
    )
    assert found == (*cached, "label", *(["class_embedding"] if text else []))
    assert set(reasons) == {
        side for side, so in (("image", image and augment == "crop"), ("text", text and drawn)) if so
    }
    for side, reason in reasons.items():
        assert reason.startswith(f"the {side} tower is frozen, but training.")
    for off in (None, training.model_copy(update={"cache": False})):
        assert cached_columns(("image", "tokens", "label"), frozen, off) == (("image", "tokens", "label"), {})
    assert cached_columns(("tokens",), ("image",), training) == (("tokens",), {})


@pytest.mark.parametrize(
    ("captions", "drawn"),
    [
        ({}, False),
        ({"templates": ["a {}"], "template_probability": 0}, False),
        ({"templates": [], "template_probability": 0.5}, False),
        ({"templates": ["a {}"], "template_probability": 0.5}, True),
        ({"keyword_probability": 0.1}, True),
    ],
)
def test_captions_are_cached_where_none_is_drawn(captions: dict[str, Any], drawn: bool) -> None:
    none = {"templates": [], "template_probability": 0, "keyword_probability": 0}
    training = TrainingConfig(steps=1, captions={**none, **captions}, augment=None)  # type: ignore[arg-type]
    columns, reasons = cached_columns(("image", "tokens"), ["text"], training)
    assert columns == ("image", "tokens" if drawn else "text_embedding")
    assert set(reasons) == ({"text"} if drawn else set())
