"""What a close reading of the methods found: guarded rows, features that move, room, and settings without effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coleclip_fixtures as noise
import pyarrow.parquet as pq
import pytest
import torch

from everclip.config import GuardConfig, MethodConfig, TrainingConfig
from everclip.contracts import EvalSet
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.methods.coleclip import CoLeClip
from everclip.models.backbone import load_backbone
from micro import of_classes

EXPERTS = {"count": 4, "active": 2, "width": 4, "dropout": 0.0}
Make = Callable[..., Learner]


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    """96 pictures of 6 classes."""
    return Table(pq.read_table(micro_folder / "data.parquet"))


@pytest.fixture
def make(micro_folder: Path) -> Make:
    """Return a function (name, training settings, **method settings) -> learner on the two-layer CLIP."""

    def build(name: str, training: dict[str, Any] | None = None, **settings: Any) -> Learner:
        given = {"steps": 2, "batch_size": 8, "lr": 0.05, "warmup": 0, "device": "cpu", "threads": 1}
        method = build_method(
            MethodConfig(name=name, settings=settings), load_backbone(str(micro_folder / "model"))
        )
        return Learner(method, TrainingConfig(**{**given, **(training or {})}))

    return build


# -- CoLeCLIP under the guard ---------------------------------------------------------------------------------


def test_a_whole_step_back_brings_prompt_and_vocabulary_back(micro_folder: Path) -> None:
    walk = noise.Walk(load_backbone(str(micro_folder / "model")))
    walk.learn("a", "b")
    walk.learn("b", "c", steps=8, until=0)
    method = walk.method
    before = method.weights()
    assert set(before) == {"vocabulary.rows", method._trainable[0]}
    with torch.no_grad():
        method.get_parameter(method._trainable[0]).add_(1.0)
    method.vocabulary.update(torch.flip(method.vocabulary.rows[method.vocabulary.place], (0,)), 0.5)
    now = method.weights()
    assert all(not torch.equal(now[name], tensor) for name, tensor in before.items())
    method.blend(before, now, 0.5)
    assert torch.allclose(method.vocabulary.rows.norm(dim=1), torch.ones(3))
    for share, end in ((1.0, now), (0.0, before)):
        method.blend(before, now, share)
        assert all(torch.equal(method.weights()[name], tensor) for name, tensor in end.items())


@pytest.mark.parametrize("action", ["stop", "step-back"])
def test_the_guard_takes_the_vocabulary_back(make: Make, data: Table, action: Any) -> None:
    learner = make("coleclip", {"steps": 4})
    task = of_classes(data, 0, 0, 1)
    watched = EvalSet("watched", "classification", task.train, None, "retention", task.classes)
    guard = learner.watch([watched], GuardConfig(max_drop=1.0, every=100, action=action))
    guard._limit = -101.0  # whatever is seen is too little: it acts at every look, and keeps nothing
    method = learner.method
    assert isinstance(method, CoLeClip)
    start = method._zero_shot(task.classes or (), "all")
    learner.learn(task)
    assert all(act["share"] == 0 for act in learner.method.notes["guard"]["acted"])
    assert torch.equal(method.vocabulary.rows, start)


# -- selectors of MoE-Adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainable", "selector"),
    [
        ([{"prompt": {"tower": "image", "count": 4}}], {"kind": "gaussian"}),
        ([{"prompt": {"tower": "both", "count": 4}}], {"kind": "gaussian", "pool": "tokens"}),
        (["image"], {"kind": "autoencoder"}),
        (["text", "image-embeddings"], {"kind": "gaussian"}),
        (["image-layernorm"], {"kind": "gaussian"}),
        (["image-bias"], {"kind": "gaussian"}),
        (["image-projection"], {"kind": "gaussian", "features": "embedding"}),
        ([{"lora": {"tower": "image"}}], {"kind": "energy"}),
    ],
)
def test_nothing_trains_that_moves_what_the_selector_looks_at(
    make: Make, trainable: Any, selector: Any
) -> None:
    with pytest.raises(ConfigError, match=r"trainable: .* features .*method\.selector"):
        make("moe-adapters", experts=EXPERTS, trainable=trainable, selector=selector)
    make("moe-adapters", experts=EXPERTS, trainable=trainable, selector="none")


@pytest.mark.parametrize("part", ["image-blocks:0", {"lora": {"tower": "image", "blocks": "first1"}}])
def test_blocks_below_the_first_adapted_one_do_not_train_under_early_features(make: Make, part: Any) -> None:
    selector = {"kind": "gaussian"}
    with pytest.raises(ConfigError, match=r"`image-blocks:0` moves the `early` features"):
        make("moe-adapters", experts={**EXPERTS, "blocks": "1"}, trainable=[part], selector=selector)
    make("moe-adapters", experts=EXPERTS, trainable=[part], selector=selector)
    make("moe-adapters", experts={**EXPERTS, "blocks": "1"}, trainable=["image-blocks:1"], selector=selector)


@pytest.mark.parametrize("trainable", [["text", "image-projection"], [{"lora": {"tower": "image"}}]])
def test_what_trains_behind_the_features_leaves_them_bit_for_bit(
    make: Make, data: Table, trainable: Any
) -> None:
    learner = make("moe-adapters", experts=EXPERTS, trainable=trainable, selector={"kind": "gaussian"})
    method = learner.method
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    selector: Any = method.selector
    before = selector.features(method.backbone, pixels)
    learner.learn(of_classes(data, 0, 0, 1))
    assert torch.equal(selector.features(method.backbone, pixels), before)
