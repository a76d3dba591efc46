"""The noise of MoE-Adapters' gates: a function of seed, place and name, of nothing else; what a fixed route keeps."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from everclip.config import MethodConfig
from everclip.contracts import Past, Progress
from everclip.data.sampling.order import generator
from everclip.data.table import Table
from everclip.methods.build import build_method
from everclip.methods.moe_adapters import shape
from everclip.methods.moe_adapters.passes import training_passes
from everclip.models.backbone import load_backbone
from everclip.models.modules.experts import experts_in
from everclip.models.modules.routing import Pass, passing
from micro import of_classes


def test_the_noise_of_a_sample_depends_on_its_place_and_name_alone(micro_folder: Path) -> None:
    experts = {"count": 5, "active": 2, "width": 4, "noise": True}
    config = MethodConfig(name="moe-adapters", settings={"experts": experts})
    method = build_method(config, load_backbone(str(micro_folder / "model")))
    method.begin_task(of_classes(Table(pq.read_table(micro_folder / "data.parquet")), 0, 0, 1), Past())
    clip, at = method.backbone.clip, Progress(3, "train", 1, 5, 9, 7)
    columns = {"id": ["a", "b"], "label": torch.zeros(2), "class_tokens": torch.zeros(3, 1)}
    told = training_passes(clip, columns, at, "3", True, False)
    blocks = {side: 1 + max(e.number for _, e in experts_in(clip, side)) for side in ("image", "text")}
    for side, names in {"image": ["a", "b"], "text": ["class 0", "class 1", "class 2"]}.items():
        noise, count = told[side].noise, next(experts_in(clip, side))[1].bank.count
        assert noise is not None
        assert (noise.dtype, noise.shape) == (torch.float32, (len(names), blocks[side], count))
        for row, name in zip(noise, names, strict=True):
            draw = generator(7, "gate", 3, "train", 1, 5, side, name)
            assert torch.equal(row, torch.from_numpy(draw.standard_normal((blocks[side], count), np.float32)))
    assert (told["image"].shared, told["text"].shared) == (False, True)
    assert set(training_passes(clip, columns, at, "3", False, False)) == {"image"}
    captions = training_passes(clip, {"id": ["a", "b"]}, at, "3", True, True)["text"]
    assert captions.noise is not None
    assert (len(captions.noise), captions.shared, captions.balance) == (2, False, True)


def test_a_copy_with_a_fixed_route_collects_and_counts_nothing(micro_folder: Path) -> None:
    config = MethodConfig(name="moe-adapters", settings={"experts": {"count": 5, "active": 2, "width": 4}})
    method = build_method(config, load_backbone(str(micro_folder / "model")))
    method.begin_task(of_classes(Table(pq.read_table(micro_folder / "data.parquet")), 0, 0, 1), Past())
    clip = copy.deepcopy(method.backbone.clip)
    found = [experts for _, experts in experts_in(clip)]
    (router,) = found[0].routers
    shape.fix_route(clip, router, same=True)
    for mode in (True, False):
        clip.train(mode)
        clip.encode_image(torch.zeros(2, 3, 16, 16))
        clip.encode_text(method.backbone.tokenise(["a", "b"]))
    for experts in found:
        assert experts.fixed_pass is not None
        assert (experts.fixed_pass.routers, experts.fixed_pass.same) == ((router,), experts.side == "text")
        assert (experts.fixed_pass.chosen, experts.new_counts) == ([], None)
    shape.fix_route(clip, None, same=True)
    assert list(experts_in(clip)) == []


def test_a_bank_of_one_route_is_not_that_of_the_newest(micro_folder: Path) -> None:
    settings = {
        "experts": {"count": 2, "active": 2, "width": 4},
        "routers": "one",
        "freeze": 0,
        "grow": False,
    }
    config = MethodConfig(name="moe-adapters", settings=settings)
    method = build_method(config, load_backbone(str(micro_folder / "model")))
    tokens = method.backbone.tokenise(["a cat", "a dog"])
    with torch.no_grad():
        plain = method.encode_texts(tokens)["embedding"]
        method.begin_task(of_classes(Table(pq.read_table(micro_folder / "data.parquet")), 0, 0, 1), Past())
        for _, experts in experts_in(method.backbone.clip):
            experts.bank.up.normal_(generator=torch.Generator().manual_seed(0))
        method.eval()
        newest = method.encode_texts(tokens)["embedding"]
        with passing({"text": Pass((), route=0)}):
            zero_shot = method.encode_texts(tokens)["embedding"]
    assert torch.allclose(zero_shot, plain, atol=1e-6)
    assert not torch.allclose(newest, plain, atol=1e-2)


def test_bytes_are_those_of_all_that_is_stored(micro_folder: Path) -> None:
    table, past = Table(pq.read_table(micro_folder / "data.parquet")), Past()
    config = MethodConfig(name="moe-adapters", settings={"experts": {"count": 5, "active": 2, "width": 4}})
    method = build_method(config, load_backbone(str(micro_folder / "model")))
    start = method.describe()
    for index in range(2):
        method.begin_task(of_classes(table, index, 2 * index, 2 * index + 1), past)
        method.end_task(of_classes(table, index, 2 * index, 2 * index + 1), past, lambda: {})
    cost = method.describe()
    assert cost.bytes - start.bytes >= 4 * (cost.stored_parameters - start.stored_parameters) > 0
    for _, experts in experts_in(method.backbone.clip):
        experts.bank.freeze((0, 1))
    # What is frozen is no parameter any more, but stored as before.
    after = method.describe()
    assert (after.bytes, after.stored_parameters) == (cost.bytes, cost.stored_parameters)
    assert after.trainable_parameters < cost.trainable_parameters
