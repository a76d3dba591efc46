"""Streams seen once, SIT's loss and its modules against stored numbers of the reference implementations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from everclip.data.sampling.blurry import Blurry, published_parts
from everclip.methods.losses import class_cross_entropy
from everclip.methods.sit import double_softmax
from everclip.models.modules.adapters import Adapter
from everclip.models.modules.lora import LowRank
from everclip.models.modules.settings import AdapterSettings, LoraSettings

HERE = Path(__file__).parent


def load(name: str) -> dict[str, Any]:
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(value) if value.ndim else value.item() for key, value in file.items()}


@pytest.mark.parametrize(
    ("name", "disjoint", "cuts"),
    [("fixed_n50_m10", 50, "equal"), ("stochastic_n50_m10", 50, "random"), ("disjoint_n100", 100, "equal")],
)
def test_the_parts_are_those_of_the_reference_sampler(name: str, disjoint: float, cuts: Any) -> None:
    stored = load("si_blurry_splits")
    labels = stored["targets"].tolist()
    for remainder in ("drop", "spread"):  # here everything divides equally
        rule = Blurry(parts=5, disjoint=disjoint, leak=10, cuts=cuts, remainder=remainder)  # type: ignore[arg-type]
        parts = published_parts(labels, 20, rule, seed=1)
        assert [len(part) for part in parts] == stored[f"{name}_task_sizes"].tolist()
        assert parts[0] == stored[f"{name}_first_task_indices"].tolist()
        assert [row for part in parts for row in part] == stored[f"{name}_order_all"].tolist()
        counts = [np.bincount([labels[row] for row in part], minlength=20).tolist() for part in parts]
        assert counts == stored[f"{name}_task_by_class_counts"].tolist()


@pytest.mark.parametrize("mode", ["batch", "all"])
@pytest.mark.parametrize("outputs", ["logits", "probs_as_logits"])
def test_the_loss_and_its_gradients(mode: str, outputs: str) -> None:
    stored = load("sit_loss")
    image, text = (stored[key].clone().requires_grad_() for key in ("img", "txt_all"))
    chosen = stored[f"{mode}_classes"]
    loss_of = class_cross_entropy if outputs == "logits" else double_softmax
    labels, scale = stored[f"{mode}_targets"], torch.tensor(stored["scale"])
    loss = loss_of(F.normalize(image, dim=1), F.normalize(text, dim=1)[chosen], labels, scale)
    assert loss.item() == pytest.approx(stored[f"{mode}_{outputs}_loss"], rel=1e-5)
    loss.backward()
    for raw, name in ((image, "img"), (text, "txt")):
        wanted = stored[f"{mode}_{outputs}_grad_{name}"]
        assert torch.allclose(raw.grad, wanted, atol=1e-4, rtol=1e-3)  # type: ignore[arg-type]
    absent = [i for i in range(len(text)) if i not in chosen.tolist()]
    assert text.grad is not None
    assert bool((text.grad[absent] == 0).all())
    assert len(absent) == (4 if mode == "batch" else 0)


def test_the_adapter_shared_by_both_sublayers() -> None:
    stored = load("sit_adapter")
    settings = AdapterSettings(shared=True, activation="relu", scale=stored["scale"], dropout=0.1)
    adapter = Adapter(16, settings, "shared", torch.Generator(), stored["x"]).eval()
    assert torch.equal(stored["x"] + adapter(stored["x"]), stored["out_at_init"])
    with torch.no_grad():
        for name in ("down", "up"):
            adapter.get_submodule(name).weight.copy_(stored[f"{name}_w"])  # type: ignore[operator,union-attr]
            adapter.get_submodule(name).bias.copy_(stored[f"{name}_b"])  # type: ignore[operator,union-attr]
    assert torch.allclose(stored["x"] + adapter(stored["x"]), stored["out"], atol=1e-6)


def test_lora_with_one_first_factor_for_q_k_and_v() -> None:
    stored = load("sit_lora_attention")
    attention = nn.MultiheadAttention(16, 4)
    settings = LoraSettings(targets=("q", "k", "v", "out"), rank=4, alpha=1, shared=True)
    assert settings.scaling == stored["scaling"]

    def update(weight: torch.Tensor, slices: tuple[str, ...], down: Any, up: Any) -> torch.Tensor:
        low_rank = LowRank(weight, slices, slices, settings, torch.Generator())
        with torch.no_grad():
            assert torch.equal(low_rank(weight), weight)  # the identity at the start, unlike the reference
            next(iter(low_rank.down.values())).copy_(down)
            for name, part in zip(slices, up.chunk(len(slices)), strict=True):
                low_rank.up[name].copy_(part)
            assert len(low_rank.down) == 1
            return low_rank(weight)  # type: ignore[no-any-return]

    fused = stored["in_proj_weight_lora_A"], stored["in_proj_weight_lora_B"]
    out = stored["out_proj__lora_A"], stored["out_proj__lora_B"]
    for wanted, adapted in (("out_base", False), ("out_lora_at_init", True)):
        with torch.no_grad():
            qkv, projection = stored["in_proj_weight"], stored["out_proj__weight"]
            if adapted:
                qkv = update(qkv, ("q", "k", "v"), *fused)
                projection = update(projection, ("out",), *out)
            attention.in_proj_weight.copy_(qkv)
            attention.in_proj_bias.copy_(stored["in_proj_bias"])
            attention.out_proj.weight.copy_(projection)
            attention.out_proj.bias.copy_(stored["out_proj__bias"])
            found = attention(stored["x"], stored["x"], stored["x"])[0]
        assert torch.allclose(found, stored[wanted], atol=1e-5)
