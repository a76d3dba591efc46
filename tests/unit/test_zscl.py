"""ZSCL: the reference's numbers, teachers encoded once, and a preset that holds what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import micro
from everclip.contracts import Past, Progress, Reference
from everclip.errors import ConfigError
from everclip.learner.fit import check_fit, learner_for
from everclip.methods.merge import RunningMean, every
from everclip.methods.penalties.base import StepView
from everclip.methods.penalties.teachers import between
from everclip.methods.penalties.zscl import Zscl, ZsclSettings
from everclip.models.backbone import Backbone
from everclip.scenarios.load import load_scenario

GOLDEN = Path(__file__).parent.parent / "golden"
Begin = Callable[..., Any]


def load(name: str) -> dict[str, Any]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(value) if value.ndim else value.item() for key, value in file.items()}


def close(found: torch.Tensor, stored: Any, atol: float = 1e-5, rtol: float = 1e-4) -> bool:
    return torch.allclose(found, torch.as_tensor(stored, dtype=found.dtype), atol=atol, rtol=rtol)


# -- numbers --------------------------------------------------------------------------------------------------


class Stored:
    """Student and teachers that answer with stored embeddings."""

    def __init__(self, image: torch.Tensor, scale: float) -> None:
        self._image, self._scale = image, scale

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._image

    def scale(self, *asked: Any) -> torch.Tensor:
        return torch.tensor(self._scale).exp()


def zscl(stored: dict[str, Any], image: torch.Tensor, **settings: Any) -> torch.Tensor:
    columns = {
        "image": image,
        "image_embedding@initial": stored["ref_image"],
        "class_embedding@initial": stored["ref_text"],
    }
    models: Any = Stored(image, stored["logit_scale_log"])
    batch: Any = {"main": {}, "zscl": columns}
    view = StepView(batch, Progress(0, "train", 0, 0, 1, 0), models, image, image, {}, {}, models)
    return Zscl("zscl", ZsclSettings(temperature=stored["T"], **settings)).loss(view)


ONLY = {
    "image": {"text_weight": 0.0},
    "text": {"image_weight": 0.0},
    "image_image": {"image_weight": 0.0, "text_weight": 0.0, "image_image_weight": 1.0},
    "feature": {"image_weight": 0.0, "text_weight": 0.0, "feature_weight": 1.0},
}


def test_the_losses_and_the_gradient_of_the_reference() -> None:
    stored = load("zscl_distillation")
    raw = stored["current_image_raw"].clone().requires_grad_()
    image = F.normalize(raw, dim=1)
    published = {"form": "cross-entropy"}
    for part in ("image", "text"):
        assert close(zscl(stored, image, **ONLY[part], **published), stored[f"{part}_loss"])
        assert close(zscl(stored, image, **ONLY[part]), stored[f"kl_{part}_times_T2"])
        assert close(
            zscl(stored, stored["ref_image"], **ONLY[part], **published), stored[f"self_{part}_loss"]
        )
    total = zscl(stored, image, **published)
    assert close(total, stored["total"])
    (gradient,) = torch.autograd.grad(total, raw, retain_graph=True)
    assert close(gradient, stored["grad_current_image_raw"])
    (floored,) = torch.autograd.grad(zscl(stored, image, weight=5), raw)
    assert close(floored, 5 * stored["grad_current_image_raw"], atol=5e-5)
    assert close(zscl(stored, stored["ref_image"]), 0.0)


def test_the_options_of_the_reference() -> None:
    stored = load("zscl_distillation")
    image = stored["current_image"]
    assert close(zscl(stored, image, **ONLY["image_image"], form="cross-entropy"), stored["image_image_loss"])
    assert close(zscl(stored, image, **ONLY["feature"]), stored["feature_mse"])
    parts = sum(zscl(stored, image, **settings) for settings in ONLY.values())
    assert close(zscl(stored, image, image_image_weight=1.0, feature_weight=1.0), parts)


def test_one_picture_alone_has_no_others_to_be_like() -> None:
    stored = load("zscl_distillation")
    stored["ref_image"] = stored["ref_image"][:1]
    image = stored["current_image"][:1].clone().requires_grad_()
    loss = zscl(stored, image, image_image_weight=1.0)
    loss.backward()
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())
    assert close(loss, zscl(stored, image.detach(), **ONLY["image"])), "one picture has one answer to a text"


def test_the_weight_ensemble_and_its_variant() -> None:
    stored = load("weight_ensemble")
    start = {"w": stored["theta_init"]}
    plain, drawn = RunningMean(start), RunningMean(start)
    for number, snapshot in enumerate(stored["theta_snapshots"]):
        plain.add({"w": snapshot})
        drawn.add({"w": snapshot}, start, stored["wise_we_alpha"])
        assert close(plain.mean["w"], stored["we_sequence"][number], atol=1e-6)
        assert close(drawn.mean["w"], stored["wise_we_sequence"][number], atol=1e-6)


def test_snapshots_come_at_a_number_of_steps_or_a_share_of_them() -> None:
    assert [every(amount, 1000) for amount in (100, 0.1, 0.25, 1)] == [100, 100, 250, 1]
    assert every(0.1, 3) == 1


# -- one learner ----------------------------------------------------------------------------------------------


@pytest.fixture
def begin(micro_config: Callable[..., Any]) -> Begin:
    """Return a function (*overrides, kind) -> (learner, tasks) with reference data."""

    def make(*overrides: str, kind: str = "classes") -> Any:
        config = micro_config(kind, "method=zscl", micro.REFERENCE, "training.lr=1e-2", *overrides)
        scenario = load_scenario(config.scenario)
        learner = learner_for(config, scenario)
        check_fit(learner, scenario.tasks)
        return learner, list(scenario.tasks)

    return make


def steps_of(learner: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Learn a task and return each step's losses."""
    seen: list[dict[str, float]] = []
    inner = learner.method.forward

    def forward(batch: Any, progress: Any) -> Any:
        losses = inner(batch, progress)
        seen.append({name: loss.item() for name, loss in losses.items()})
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(learner.method, "forward", forward)
        learner.learn(task)
    return seen


def test_at_the_first_step_nothing_is_lost_and_later_something_is(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, tasks = begin()
    seen = steps_of(learner, tasks[0], monkeypatch)
    assert abs(seen[0]["zscl"]) < 1e-5
    assert seen[0]["weight-constraint"] == 0
    assert all(step["zscl"] > 1e-3 and step["weight-constraint"] > 0 for step in seen[1:])


def test_the_teacher_reads_pictures_and_texts_once_per_run(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, tasks = begin("training.steps=3")
    teacher, count = learner.method.teacher_of("initial"), Counter[str]()

    def watch(name: str) -> None:
        inner = getattr(Backbone, name)

        def counted(self: Any, values: torch.Tensor, *how: bool) -> Any:
            count[name] += len(values) if self is teacher else 0
            return inner(self, values, *how)

        monkeypatch.setattr(Backbone, name, counted)

    watch("encode_image")
    watch("encode_text")
    for task in tasks:
        learner.learn(task)
    reference = learner.reference
    assert count == {"encode_image": len(reference.images), "encode_text": len(reference.texts)}
    assert len(reference.images) == 20
    assert len(reference.texts) == 5


def test_cached_or_not_the_losses_are_the_same(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, tasks = begin()
    plain, _ = begin("training.cache=false")
    one, two = (steps_of(learner, tasks[0], monkeypatch) for learner in (cached, plain))
    assert "image_embedding@initial" in cached.plan(tasks[1])[0].streams["zscl"].columns
    assert "image_embedding@initial" not in plain.plan(tasks[1])[0].streams["zscl"].columns
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_what_memory_cannot_hold_lies_in_a_file_for_the_whole_run(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, tasks = begin()
    spilling, _ = begin()
    spilling.features.memory, spilling.features.folders.own = 0, tmp_path / "own"
    for task in tasks[:2]:
        one, two = (steps_of(learner, task, monkeypatch) for learner in (held, spilling))
        assert one == two
        assert len(list((tmp_path / "own").glob("*.safetensors"))) == 1


def test_reference_batches_have_a_size_and_a_view_of_their_own(begin: Begin) -> None:
    learner, tasks = begin("method.penalties.zscl.batch_size=3")
    stream = learner.plan(tasks[0])[0].streams["zscl"]
    assert (stream.batch_size, stream.view) == (3, "eval")
    assert stream.classes is learner.plan(tasks[1])[0].streams["zscl"].classes, "or the bank is encoded again"


def test_of_much_reference_data_some_are_taken_by_hash_and_that_is_said(begin: Begin) -> None:
    learner, tasks = begin("method.penalties.zscl.images=7", "method.penalties.zscl.texts=2")
    (phase,) = learner.plan(tasks[0])
    stream = phase.streams["zscl"]
    used = stream.sources[0].table.ids
    assert (len(used), len(stream.classes)) == (7, 2)
    assert any(
        "7 of 20 reference images" in note and "2 of 5 reference texts" in note for note in phase.notes
    )
    every_id = learner.reference.images.ids
    assert used == [name for name in every_id if name in used], "in the order of the data"
    fewer = replace(learner.reference, images=learner.reference.images.select(range(15)))
    learner.reference = fewer
    kept = learner.plan(tasks[0])[0].streams["zscl"].sources[0].table.ids
    assert set(used) & set(fewer.images.ids) <= set(kept), "other data change few of the choices"


def test_a_teacher_between_start_and_task_is_rebuilt_inside_a_task(begin: Begin) -> None:
    learner, tasks = begin("method.penalties.zscl.toward_task_start=0.8")
    method, kind = learner.method, between(0.8)
    start = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    learner.learn(tasks[0])
    now = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    method.begin_task(tasks[1], learner.past())
    teacher = method.teacher_of(kind).state_dict()
    for name, tensor in teacher.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, 0.2 * start[name] + 0.8 * now[name], atol=1e-6)
    assert any(not torch.equal(start[k], v) for k, v in teacher.items())
    again, _ = begin("method.penalties.zscl.toward_task_start=0.8")
    again.method.load_state_dict(method.state_dict())
    again.method.load_extra(method.extra_tensors(), method.extra_state())
    other = again.method.teacher_of(kind).state_dict()
    assert all(torch.equal(v, other[k]) for k, v in teacher.items())
    again.method.end_task(tasks[1], Past(), lambda: {})
    with pytest.raises(KeyError):
        again.method.teacher_of(kind)


def test_the_mean_of_start_and_first_step_where_snapshots_are_rare(begin: Begin) -> None:
    learner, tasks = begin("method.merge.every=100", "training.steps=3")
    method = learner.method
    start, after = method.weights(), []
    inner = method.after_step

    def watched(progress: Any) -> None:
        inner(progress)
        after.append(method.weights())

    method.after_step = watched
    learner.learn(tasks[0])
    final = method.weights()
    assert len(after) == 3
    for name, tensor in final.items():
        assert torch.allclose(tensor, (start[name] + after[0][name]) / 2, atol=1e-7)
    assert any(not torch.equal(after[0][n], after[2][n]) for n in final)


def test_the_variant_draws_the_mean_to_the_start(begin: Begin) -> None:
    def gone(share: float) -> float:
        learner, tasks = begin(f"method.merge.wise_we={share}", "training.steps=3", "method.merge.every=1")
        start = learner.method.weights()
        learner.learn(tasks[0])
        return sum(float((v - start[k]).square().sum()) for k, v in learner.method.weights().items())

    plain, drawn, held = (gone(share) for share in (1.0, 0.5, 0.0))
    assert 0 == held < drawn < plain


# -- what is refused ------------------------------------------------------------------------------------------


def test_without_reference_data_a_run_is_refused_with_what_to_set(micro_config: Callable[..., Any]) -> None:
    config = micro_config("classes", "method=zscl")
    scenario = load_scenario(config.scenario)
    learner = learner_for(config, scenario)
    with pytest.raises(
        ConfigError, match=r"set scenario.reference.images.source and scenario.reference.texts"
    ):
        check_fit(learner, scenario.tasks)
    with pytest.raises(
        ConfigError, match=r"Conceptual Captions; nothing is downloaded\), or `learner.reference`"
    ):
        learner.learn(scenario.tasks[0])
    learner.reference = Reference(scenario.tasks[1].train, ("a red thing", "a blue thing"))
    learner.learn(scenario.tasks[0])


def test_a_frozen_image_tower_is_said_to_have_nothing_to_hold(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, tasks = begin("method.trainable=[text]")
    (phase,) = learner.plan(tasks[0])
    assert "zscl" not in phase.streams
    assert any("no effect" in note for note in phase.notes)
    assert all(step["zscl"] == 0 for step in steps_of(learner, tasks[0], monkeypatch))


def test_settings_that_do_not_go_together_are_refused(begin: Begin) -> None:
    with pytest.raises(ConfigError, match="toward_task_start begins at the initial model"):
        begin("method.penalties.zscl={toward_task_start: 0.8, reference: task-start}")
    with pytest.raises(ConfigError, match="lacks the modules that"):
        begin("method.penalties.zscl.toward_task_start=0.8", "method.trainable=[image, {lora: {rank: 2}}]")


@pytest.mark.parametrize("name", ["zscl-mtil", "zscl-cil"])
def test_published_settings_are_presets(begin: Begin, name: str) -> None:
    learner, tasks = begin(f"method={name}")
    parts = {p.name: p.settings for p in learner.method.penalties}
    assert parts["zscl"].form == "cross-entropy"
    assert parts["zscl"].weight == (1 if name == "zscl-mtil" else 5)
    assert ("weight-constraint" in parts) == (name == "zscl-mtil")
    keep = learner.method.settings.merge
    assert (keep.kind, keep.every, keep.wise_we) == ("running-mean", 100 if name == "zscl-mtil" else 10, 1.0)
    assert "backbone.clip.logit_scale" not in learner.method.trainable
    assert learner.plan(tasks[0])
