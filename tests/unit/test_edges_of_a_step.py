"""Edges that small models and right answers hide: a third block, wrong answers of one class, texts that are one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from rail_fixtures import maker, pictures

import micro
from everclip.config import EvaluationConfig, TrainingConfig
from everclip.contracts import ClassEntry, LabelSpace, Past, Progress
from everclip.evaluation import representation
from everclip.evaluation.scoring import SCORES_UNDER, RowScorer
from everclip.learner import Learner
from everclip.methods.losses import class_cross_entropy
from everclip.models.modules import insert
from micro import of_classes


@pytest.mark.parametrize("depth", [1, 2, "all"])
def test_image_prompts_leave_after_the_last_of_three_blocks(depth: int | str) -> None:
    torch.manual_seed(0)
    vision = {**micro.MODEL["vision_cfg"], "layers": 3}
    clip = CLIP(embed_dim=32, vision_cfg=vision, text_cfg=micro.MODEL["text_cfg"]).eval()
    insert(clip, "prompt", {"count": 2, "depth": depth})
    lengths: list[tuple[int, int]] = []
    for block in clip.visual.transformer.resblocks:
        block.ln_1.register_forward_hook(lambda module, given, out: lengths.append(tuple(out.shape[:2])))
    ends: list[int] = []
    clip.visual.transformer.register_forward_hook(lambda module, given, out: ends.append(out.shape[1]))
    with torch.no_grad():
        clip.encode_image(torch.rand(3, 3, 16, 16))
    assert lengths == [(3, 5 + 2)] * 3
    assert ends == [5]


def test_a_wrong_answer_is_right_for_no_class() -> None:
    entries = tuple(ClassEntry(f"k{i}", f"name {i}") for i in range(3))
    keys = ["k1", "k1", "k0", "k2"]
    answers = torch.tensor([0, 1, 1, 2])
    space = LabelSpace(entries)
    data = SimpleNamespace(column=lambda name: keys)
    s: Any = SimpleNamespace(name="set", data=data, kind="classification", task=None, seen_only=False)
    protocol: Any = SimpleNamespace(name="all", same_texts="apart", known_task=False)
    scenario: Any = SimpleNamespace(
        eval_sets=[s], label_space=lambda *given: space, protocols=[protocol], shown_protocol="all"
    )
    method: Any = SimpleNamespace(
        eval=lambda: None,
        encoder_keys=dict,
        wide=(),
        routes=tuple,
        expert_places=dict,
        backbone=SimpleNamespace(logit_scale=torch.tensor(10.0)),
    )
    images = {SCORES_UNDER + "all": torch.nn.functional.one_hot(answers, 3).float()}
    features: Any = SimpleNamespace(images=lambda *given, **named: {"set": images}, texts=lambda *given: None)
    result = RowScorer(scenario, features, EvaluationConfig(), 0, {}).row(method, (), lambda *given: None)
    assert result.per_class == {"set": {"k0": 0.0, "k1": 0.5, "k2": 1.0}}
    scores = result.scores["set"]["all"]
    assert (scores["accuracy"].value, scores["top5"].value) == (0.5, 1.0)
    assert (scores["mean_class_accuracy"].value, scores["mean_class_accuracy"].n) == (0.5, 3)
    assert [(c.key, c.n, c.right) for c in result.confusions["set"].classes] == [
        ("k0", 1, 0),
        ("k1", 2, 1),
        ("k2", 1, 1),
    ]
    assert result.confusions["set"].wrong == [(0, 1, 1), (1, 0, 1)]


def test_classes_of_one_text_are_one_answer_of_the_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    image, bank = (torch.nn.functional.normalize(torch.randn(n, 6, generator=draw), dim=1) for n in (4, 5))
    bank[3], bank[4] = bank[1], bank[0]
    same, labels = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0, 3, 2, 4])
    found = class_cross_entropy(image, bank, labels, torch.tensor(10.0), 0.1, same)
    logits = 10 * image @ bank[:3].T
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]), label_smoothing=0.1)
    assert torch.allclose(found, wanted)


@pytest.mark.parametrize("name", ["effective_rank", "participation_ratio"])
def test_what_is_undefined_is_said_by_its_name(name: str) -> None:
    with pytest.warns(RuntimeWarning, match=rf"{name}.*all rows are the same"):
        assert getattr(representation, name)(torch.ones(4, 3)) is None


@pytest.mark.parametrize("texts", ["classes", "captions"])
def test_experts_encode_each_picture_of_a_step_once(texts: str, micro_folder: Path) -> None:
    training = {"steps": 2, "batch_size": 8, "device": "cpu", "threads": 1, "cache": False}
    experts = {"count": 3, "active": 2, "width": 4}
    learner = Learner.create(
        str(micro_folder / "model"), "moe-adapters", training, experts=experts, selector=None
    )
    method, task = learner.method, of_classes(pictures(micro_folder), 0, 0, 1)
    if texts == "captions":
        task = type(task)(0, "captions", task.train)
    method.begin_task(task, learner.past())
    (phase,) = method.phases(task, learner.past())
    batch = {name: learner.engine.maker.batch(stream, name, 0) for name, stream in phase.streams.items()}
    counts = {"image": 0, "text": 0}
    with pytest.MonkeyPatch.context() as patch:
        for side in counts:
            inner = getattr(method.backbone, f"encode_{side}")

            def encode(values: torch.Tensor, inner: Any = inner, side: str = side) -> Any:
                counts[side] += 1
                return inner(values)

            patch.setattr(method.backbone, f"encode_{side}", encode)
        method.train()(batch, Progress(0, "train", 0, 0, 2, 0))
    assert counts == {"image": 1, "text": 1}


@pytest.mark.parametrize("augmented", [False, True])
def test_a_regression_goes_through_its_pictures_in_the_batches_of_training(
    augmented: bool, micro_folder: Path
) -> None:
    make: Callable[..., Learner] = maker(micro_folder)
    method, task = make(augmented=augmented).method, of_classes(pictures(micro_folder), 0, 0, 1)
    for size, wanted in ((5, 5), (None, 64)):
        training = None if size is None else TrainingConfig(steps=1, batch_size=size)
        (phase,) = method.phases(task, Past(training=training))
        (stream,) = phase.streams.values()
        assert (phase.name, phase.optimiser, phase.repeats) == ("regress", None, 1)
        assert (stream.batch_size, stream.order) == (wanted, "once")
        assert [entry.key for entry in stream.classes or ()] == ["class-0", "class-1"]
