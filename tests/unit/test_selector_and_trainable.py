"""What may train under a selector of MoE-Adapters: nothing that moves what the selector looks at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.learner import Learner
from micro import of_classes

EXPERTS = {"count": 4, "active": 2, "width": 4, "dropout": 0.0}
Make = Callable[..., Learner]


@pytest.fixture(scope="module")
def data(micro_folder: Path) -> Table:
    """96 pictures of 6 classes."""
    return Table(pq.read_table(micro_folder / "data.parquet"))


@pytest.fixture
def make(micro_folder: Path) -> Make:
    """Return a function (**method settings) -> learner on the two-layer CLIP."""

    def build(**settings: Any) -> Learner:
        training = {"steps": 2, "batch_size": 8, "lr": 0.05, "warmup": 0, "device": "cpu", "threads": 1}
        given = {"experts": EXPERTS, **settings}
        return Learner.create(str(micro_folder / "model"), "moe-adapters", training, **given)

    return build


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
        make(trainable=trainable, selector=selector)
    make(trainable=trainable, selector="none")


@pytest.mark.parametrize("part", ["image-blocks:0", {"lora": {"tower": "image", "blocks": "first1"}}])
def test_blocks_below_the_first_adapted_one_do_not_train_under_early_features(make: Make, part: Any) -> None:
    selector = {"kind": "gaussian"}
    with pytest.raises(ConfigError, match=r"`image-blocks:0` changes the `early` features"):
        make(experts={**EXPERTS, "blocks": "1"}, trainable=[part], selector=selector)
    make(trainable=[part], selector=selector)
    make(experts={**EXPERTS, "blocks": "1"}, trainable=["image-blocks:1"], selector=selector)


@pytest.mark.parametrize("trainable", [["text", "image-projection"], [{"lora": {"tower": "image"}}]])
def test_what_trains_behind_the_features_leaves_them_bit_for_bit(
    make: Make, data: Table, trainable: Any
) -> None:
    learner = make(trainable=trainable, selector={"kind": "gaussian"})
    method = learner.method
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    selector: Any = method.selector
    before = selector.features(method.backbone, pixels)
    learner.learn(of_classes(data, 0, 0, 1))
    assert torch.equal(selector.features(method.backbone, pixels), before)
