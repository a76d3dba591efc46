"""LoRA: its equation, exact merging, and PEFT's numbers where PEFT can do the same."""

from __future__ import annotations

import copy
from typing import Any

import module_models as models
import pytest
import torch

from everclip.errors import ConfigError
from everclip.models.modules import insert, merge_into, mergeable
from everclip.models.modules.lora import adapted, merge, unmerge

ALL = {"targets": ["q", "k", "v", "out", "mlp"], "rank": 3, "alpha": 5}


def grown(model: str = "vit", **settings: Any) -> Any:
    clip = models.build(model)
    models.shake(clip, insert(clip, "lora", {**ALL, **settings}).parameters)
    return clip


@pytest.mark.parametrize("model", models.CASES)
def test_merging_and_unmerging_are_exact(model: str) -> None:
    clip = grown(model)
    before, weights, plain = models.embeddings(clip), models.state(clip), models.build(model)
    records = merge(clip)
    assert sorted(clip.state_dict()) == sorted(plain.state_dict())
    assert models.same(models.embeddings(clip), before)
    assert not models.same(models.embeddings(plain), before)
    unmerge(records)
    assert models.same(models.embeddings(clip), before)
    after = clip.state_dict()
    assert sorted(after) == sorted(weights)
    assert all(torch.equal(after[k], v) for k, v in weights.items())


def test_a_merged_model_is_a_plain_one_for_others() -> None:
    clip = grown()
    assert mergeable(clip)
    expected = models.embeddings(clip)
    other = copy.deepcopy(clip)
    merge_into(other)
    plain = models.build("vit")
    plain.load_state_dict(other.state_dict())
    assert models.same(models.embeddings(plain), expected)
    assert models.same(models.embeddings(clip), expected)  # the copy's merging left the original alone
    assert len(list(adapted(clip))) == 16


@pytest.mark.parametrize("stabilised", [False, True])
def test_the_update_is_scaled_b_a_in_its_own_slice(stabilised: bool) -> None:
    clip = grown(targets=["k"], rank_stabilised=stabilised, tower="image", blocks="1")
    plain = models.build("vit")
    attention = clip.visual.transformer.resblocks[1].attn
    update = attention.parametrizations.in_proj_weight[0]
    factor = 5 / 3**0.5 if stabilised else 5 / 3
    wanted = plain.visual.transformer.resblocks[1].attn.in_proj_weight.clone()
    wanted[32:64] += factor * update.up["k"] @ update.down["k"]
    assert torch.allclose(attention.in_proj_weight, wanted, atol=1e-6)
    assert torch.equal(attention.in_proj_weight[:32], wanted[:32])
    assert torch.equal(attention.in_proj_weight[64:], wanted[64:])
    assert update.up["k"].shape == (32, 3)
    assert update.down["k"].shape == (3, 32)


def test_gradients_reach_both_factors_and_not_the_weight() -> None:
    clip = grown()
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(".up." in name or ".down." in name)
    pixels, ids = models.inputs(clip)
    (clip.encode_image(pixels).square().sum() + clip.encode_text(ids).square().sum()).backward()
    for name, parameter in clip.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.abs().max() > 0, name


def test_bf16_autocast_trains_the_weight_that_is_merged() -> None:
    clip = grown()
    attention = clip.visual.transformer.resblocks[0].attn
    with torch.autocast("cpu", torch.bfloat16):
        training = attention.in_proj_weight
    assert training.dtype == torch.float32
    assert torch.equal(training, attention.in_proj_weight)


# -- PEFT -----------------------------------------------------------------------------------------------------


def peft_model(targets: list[str]) -> Any:
    peft = pytest.importorskip("peft")
    names = [rf".*resblocks\.\d\.{target}" for target in targets]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules="|".join(names))
    return peft.get_peft_model(models.build("vit"), config)


def loss_of(clip: Any) -> torch.Tensor:
    pixels, ids = models.inputs(models.build("vit"))
    image, text = clip.encode_image(pixels), clip.encode_text(ids)
    return (image[:, None] * text[None]).square().sum() + image.sum()


@pytest.mark.filterwarnings("ignore")
def test_the_mlp_has_pefts_outputs_and_gradients() -> None:
    theirs = peft_model([r"mlp\.c_fc", r"mlp\.c_proj"])
    ours = grown(targets=["mlp"])
    copied = 0
    for owner, _, update in adapted(ours):
        (target,) = update.up
        place = next(n for n, m in ours.named_modules() if m is owner)
        layer = theirs.base_model.model.get_submodule(place)
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(update.down[target])
            layer.lora_B["default"].weight.copy_(update.up[target])
        copied += 1
    assert copied == 8
    one, two = loss_of(ours), loss_of(theirs.base_model.model)
    assert torch.allclose(one, two, rtol=1e-5)
    one.backward()
    two.backward()
    for owner, _, update in adapted(ours):
        (target,) = update.up
        place = next(n for n, m in ours.named_modules() if m is owner)
        layer = theirs.base_model.model.get_submodule(place)
        for mine, other in ((update.down, layer.lora_A), (update.up, layer.lora_B)):
            expected = other["default"].weight.grad
            assert (mine[target].grad - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.filterwarnings("ignore")
def test_attention_has_pefts_outputs_and_gradients() -> None:
    """PEFT has one A for q, k and v together: ours with equal A are that.

    It adapts the output projection too, and adds that update twice when it runs (it merges the weight by hand and then
    calls the projection's own merge), so the comparison is made where that update is still zero; its gradient is not.
    """
    theirs = peft_model(["attn"])
    ours = grown(targets=["q", "k", "v", "out"])
    layers = []
    for place, layer in theirs.base_model.model.named_modules():
        if type(layer).__name__ != "MultiheadAttention" or not hasattr(layer, "lora_A"):
            continue
        attention = ours.get_submodule(place)
        inner, outer = (
            attention.parametrizations.in_proj_weight[0],
            attention.out_proj.parametrizations.weight[0],
        )
        shared, out = layer.lora_A["default"].weight, layer.base_layer.out_proj
        with torch.no_grad():
            for name in "qkv":
                inner.down[name].copy_(shared)
            layer.lora_B["default"].weight.copy_(torch.cat([inner.up[n] for n in "qkv"]))
            out.lora_A["default"].weight.copy_(outer.down["out"])
            out.lora_B["default"].weight.zero_()
            outer.up["out"].zero_()
        layers.append((layer, out, inner, outer))
    assert len(layers) == 4
    one, two = loss_of(ours), loss_of(theirs.base_model.model)
    assert torch.allclose(one, two, rtol=1e-5)
    one.backward()
    two.backward()
    for layer, out, inner, outer in layers:
        pairs = [
            (sum(inner.down[n].grad for n in "qkv"), layer.lora_A),
            (torch.cat([inner.up[n].grad for n in "qkv"]), layer.lora_B),
            (outer.up["out"].grad, out.lora_B),
        ]
        for mine, other in pairs:
            expected = other["default"].weight.grad
            assert (mine - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_largest_rank_is_that_of_the_smallest_weight() -> None:
    clip = models.build("vit")
    insert(clip, "lora", {"targets": ["q"], "rank": 32, "tower": "image"})
    with pytest.raises(ConfigError, match="33 is more than the 32 rows or columns"):
        insert(models.build("vit"), "lora", {"targets": ["q"], "rank": 33, "tower": "image"})
