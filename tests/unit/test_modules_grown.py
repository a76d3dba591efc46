"""Whatever grows in a model starts where it should, copies with the model, and comes out without a trace."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import module_models as models
import pytest
import torch

from everclip.errors import ConfigError
from everclip.models import modules
from everclip.models.modules import grown, insert, merge_into, mergeable, remove
from everclip.models.modules.grow import extra_cost
from everclip.models.modules.settings import ExpertsSettings
from everclip.running.remarks import data_remarks

IDENTITIES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"targets": ["q", "k", "v", "out", "mlp"], "rank": 3, "alpha": 5}),
    "adapter": ("adapter", {"width": 4}),
    "parallel adapter": ("adapter", {"form": "parallel", "width": 4, "activation": "relu"}),
}
EVERY = {
    **IDENTITIES,
    "prompt": ("prompt", {"tower": "both", "count": 3}),
    "deep prompt": ("prompt", {"tower": "both", "count": 2, "depth": "all"}),
}
ALL = {**EVERY, "coupled prompt": ("prompt", {"tower": "both", "count": 2, "depth": 2, "coupled": True})}
"""With what grows in both towers or not at all."""


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("module", IDENTITIES)
@pytest.mark.parametrize("model", models.CASES)
def test_the_identity_at_the_start_bit_for_bit(model: str, module: str, training: bool) -> None:
    clip = models.build(model).train(training)
    before = models.embeddings(clip)
    insert(clip, *IDENTITIES[module])
    assert models.same(models.embeddings(clip), before)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("module", ALL)
@pytest.mark.parametrize("model", models.CASES)
def test_it_reaches_every_embedding_and_comes_out_without_a_trace(
    model: str, module: str, batch_first: bool
) -> None:
    if model == "custom blocks" and not batch_first:
        pytest.skip("open_clip's custom blocks are always batch first")
    clip = models.build(model, batch_first)
    before, weights, kind = models.embeddings(clip), models.state(clip), type(clip)
    new = insert(clip, *ALL[module], seed=1).parameters
    assert new
    assert set(new) <= {n for n, _ in clip.named_parameters()}
    models.shake(clip, new)
    changed = models.embeddings(clip)
    for one, two in zip(before, changed, strict=True):
        assert (one - two).abs().amax(dim=1).min() > 1e-4
    remove(clip)
    assert models.same(models.embeddings(clip), before)
    assert type(clip) is kind
    assert grown(clip) == {}
    after = clip.state_dict()
    assert list(after) == list(weights) or sorted(after) == sorted(weights)
    assert models.same(tuple(after[k] for k in weights), tuple(weights.values()))


@pytest.mark.parametrize("module", ALL)
def test_a_row_depends_on_nothing_else_in_its_batch(module: str) -> None:
    clip = models.build("vit")
    models.shake(clip, insert(clip, *ALL[module]).parameters)
    pixels, ids = models.inputs(clip)
    with torch.no_grad():
        image, text = clip.encode_image(pixels), clip.encode_text(ids)
        turned = clip.encode_image(pixels.flip(0)), clip.encode_text(ids.flip(0))
        alone = clip.encode_image(pixels[2:3]), clip.encode_text(ids[2:3])
    for whole, other, one in zip((image, text), turned, alone, strict=True):
        assert torch.allclose(whole, other.flip(0), atol=1e-6)
        assert torch.allclose(whole[2:3], one, atol=1e-6)


@pytest.mark.parametrize("module", ALL)
@pytest.mark.parametrize("model", ["vit", "custom text"])
def test_a_deep_copy_is_a_model_of_its_own(model: str, module: str) -> None:
    clip = models.build(model)
    before = models.embeddings(clip)
    new = insert(clip, *ALL[module]).parameters
    models.shake(clip, new)
    twin, grown_up = copy.deepcopy(clip), models.embeddings(clip)
    assert models.same(models.embeddings(twin), grown_up)
    with torch.no_grad():
        for name in new:
            clip.get_parameter(name).zero_()
    assert models.same(models.embeddings(twin), grown_up)
    zeroed = models.embeddings(clip)
    remove(twin)
    assert models.same(models.embeddings(twin), before)
    assert models.same(models.embeddings(clip), zeroed)
    assert grown(clip)


@pytest.mark.parametrize("module", ALL)
def test_weights_come_back_through_a_state_dict(module: str) -> None:
    clip, twin = models.build("custom text"), models.build("custom text")
    models.shake(clip, insert(clip, *ALL[module], seed=1).parameters)
    insert(twin, *ALL[module], seed=2)
    twin.load_state_dict(clip.state_dict())
    assert models.same(models.embeddings(twin), models.embeddings(clip))


@pytest.mark.parametrize("module", ALL)
def test_initial_values_depend_on_the_seed_alone(module: str) -> None:
    states = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        clip = models.build("vit")
        torch.manual_seed(noise)
        insert(clip, *ALL[module], seed=seed)
        states.append(models.state(clip))
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert any(not torch.equal(v, states[2][k]) for k, v in states[0].items())
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    insert(models.build("vit"), *ALL[module])  # the model itself is built from seed 0
    torch.manual_seed(9)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("model", ["vit", "custom text"])
@pytest.mark.parametrize("module", ALL)
def test_every_drawn_parameter_has_values_of_its_own_for_each_seed(model: str, module: str) -> None:
    """Two blocks that start alike, or a place whose start no seed changes, would pass for right in every score."""
    drawn: list[dict[str, torch.Tensor]] = []
    for seed in (0, 1):
        clip = models.build(model)
        new = insert(clip, *ALL[module], seed=seed).parameters
        values = {name: clip.get_parameter(name).detach() for name in new}
        drawn.append(
            {name: tensor for name, tensor in values.items() if tensor.numel() > 1 and tensor.std() > 0}
        )
    assert drawn[0]
    assert drawn[0].keys() == drawn[1].keys()
    starts = [tuple(tensor.flatten()[:2].tolist()) for one in drawn for tensor in one.values()]
    assert len(set(starts)) == len(starts)


def test_starts_are_spread_as_the_papers_draw_them() -> None:
    """Uniform up to the bound of a first projection or of VPT's prompts; text prompts normal with deviation 0.02."""
    for module in EVERY:
        clip = models.build("vit")
        name, settings = EVERY[module]
        more = {"count": 9} if name == "prompt" else {}
        for place in insert(clip, name, {**settings, **more}, seed=3).parameters:
            values = clip.get_parameter(place).detach()
            if place.endswith("prompt.tokens"):
                assert values.shape == (9, 32)
                if place.startswith("visual."):
                    bound = math.sqrt(6 / (3 * 8**2 + 32))
                    assert 0.95 * bound < float(values.abs().max()) <= bound
                else:
                    assert float(values.std()) == pytest.approx(0.02, rel=0.12)
                    assert float(values.abs().max()) < 0.1
            elif ".down." in place and not place.endswith("bias"):
                bound = 1 / math.sqrt(values.shape[1])
                assert 0.9 * bound < float(values.abs().max()) <= bound
            else:
                assert not values.any(), place


def test_the_cost_for_each_image_is_that_of_the_image_tower() -> None:
    """Two blocks of width 32: an adapter of width 4 multiplies 2 x 32 x 4 times for each token."""
    each = "multiplications per image token"
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("lora", {"rank": 2}, "none"),
        ("adapter", {"width": 4}, f"adapters: 1,024 {each}"),
        ("adapter", {"width": 4, "form": "parallel", "tower": "image"}, f"adapters: 512 {each}"),
        ("adapter", {"width": 4, "tower": "text"}, "none"),
        ("prompt", {"count": 3, "tower": "both", "depth": "all"}, "prompts: 3 more tokens per image"),
        ("prompt", {"count": 3, "tower": "text"}, "none"),
        ("prompt", {"count": 3, "tower": "both", "coupled": True}, "prompts: 3 more tokens per image"),
        ("experts", {"count": 5, "active": 2, "width": 4}, f"experts: 1,024 {each}"),
        ("experts", {"count": 5, "active": 3, "width": 4, "blocks": "last1"}, f"experts: 768 {each}"),
        ("experts", {"count": 5, "active": 3, "width": 4, "tower": "text"}, "none"),
    )
    for name, settings, said in cases:
        clip = models.build("vit")
        given = ExpertsSettings(**settings) if name == "experts" else settings
        insert(clip, name, given)
        assert extra_cost(clip) == said
        remove(clip)
        assert extra_cost(clip) == "none"
    clip = models.build("vit")
    insert(clip, "adapter", {"width": 4})
    insert(clip, "prompt", {"count": 3, "tower": "image"})
    assert (
        extra_cost(clip)
        == "adapters: 1,024 multiplications per image token; prompts: 3 more tokens per image"
    )


@pytest.mark.parametrize("module", EVERY)
def test_only_the_named_tower_and_blocks_grow(module: str) -> None:
    name, settings = EVERY[module]
    clip = models.build("vit")
    before = models.embeddings(clip)
    models.shake(clip, insert(clip, name, {**settings, "tower": "image"}).parameters)
    after = models.embeddings(clip)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    if name != "prompt":
        clip = models.build("vit")
        found = insert(clip, name, {**settings, "tower": "text", "blocks": "last1"}).parameters
        assert all(n.startswith("transformer.resblocks.1.") for n in found)


@pytest.mark.parametrize("module", EVERY)
@pytest.mark.parametrize("model", models.OTHERS)
def test_other_towers_are_refused_with_what_fits(model: str, module: str) -> None:
    clip = models.build(model)
    before = models.state(clip)
    with pytest.raises(
        ConfigError, match=r"image tower.*not open_clip's own transformer.*takes whole towers"
    ):
        insert(clip, EVERY[module][0], {**EVERY[module][1], "tower": "image"})
    with pytest.raises(ConfigError, match="image tower"):
        insert(clip, EVERY[module][0], {**EVERY[module][1], "tower": "both"})
    assert clip.state_dict().keys() == before.keys()  # nothing was grown in the text tower either
    insert(clip, EVERY[module][0], {**EVERY[module][1], "tower": "text"})


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("model", ["vit", "custom text"])
@pytest.mark.parametrize("module", EVERY)
def test_two_of_a_kind_at_one_place_are_refused(module: str, model: str, tower: str) -> None:
    clip, other = models.build(model), "text" if tower == "image" else "image"
    name, settings = EVERY[module]
    insert(clip, name, {**settings, "tower": tower})
    before = models.state(clip)
    with pytest.raises(ConfigError, match=rf"two entries `{name}` .*{tower} tower"):
        insert(clip, name, {**settings, "tower": tower})
    assert models.state(clip).keys() == before.keys()
    insert(clip, name, {**settings, "tower": other})


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("lora", {"blocks": "1-5"}, "blocks"),
        ("lora", {"blocks": "last3"}, "0-1"),
        ("lora", {"rank": 33}, "rank: 33"),
        ("lora", {"rank": 0}, "rank"),
        ("lora", {"targets": ["w"]}, "targets"),
        ("adapter", {"widht": 3}, "width"),
        ("prompt", {"tower": "text", "count": 11}, "no room"),
        ("prompt", {"tower": "text", "init": "a", "count": 1}, "not both"),
        ("prompt", {"depth": 3}, "depth: 3"),
        ("prompt", {"depth": 3, "tower": "both", "coupled": True}, "depth: 3"),
        ("prompt", {"count": 11, "tower": "both", "coupled": True}, "no room"),
        ("prompt", {"tower": "text", "coupled": True}, "tower: both"),
        ("prompt", {"tower": "both", "init": "a"}, "coupled: true"),
        ("loar", {}, "lora"),
    ],
)
def test_settings_that_do_not_fit_are_named(name: str, settings: dict[str, Any], said: str) -> None:
    clip = models.build("vit")
    before = models.state(clip)
    with pytest.raises(ConfigError, match=said):
        insert(clip, name, settings)
    assert clip.state_dict().keys() == before.keys()


def test_modules_of_several_kinds_share_a_model() -> None:
    clip = models.build("vit")
    before = models.embeddings(clip)
    for module in ("lora", "adapter", "parallel adapter"):
        insert(clip, *EVERY[module])
    assert models.same(models.embeddings(clip), before)
    assert grown(clip) == {"lora": 16, "adapter": 12}
    assert not mergeable(clip)
    with pytest.raises(ConfigError, match="12 x adapter"):
        merge_into(clip)
    remove(clip, "adapter")
    assert mergeable(clip)
    assert grown(clip) == {"lora": 16}


@pytest.mark.parametrize("module", ALL)
def test_a_result_says_where_the_model_was_another_one_before_anything_was_learned(module: str) -> None:
    clip = models.build("vit")
    before = models.embeddings(clip)
    insert(clip, *ALL[module])
    same = models.same(models.embeddings(clip), before)
    scenario = SimpleNamespace(guesses=(), notes=(), quarantine=())
    found = list(data_remarks(scenario, SimpleNamespace(clip=clip, notes=[])))  # type: ignore[arg-type]
    assert same == (module in IDENTITIES) == (found == [])
    assert all("row 0" in message for _, message in found)


def test_names_of_the_package_load_on_first_use() -> None:
    assert modules.__getattr__("insert") is insert
    assert {name: modules.__getattr__(name) for name in modules.__all__}.keys() == set(modules.__all__)
    with pytest.raises(AttributeError, match=r"'everclip.models.modules' has no attribute 'graft'"):
        modules.__getattr__("graft")


def test_modules_that_compute_differently_are_written_differently() -> None:
    """What is remembered of a model is known by what it is written as."""
    variants: tuple[tuple[str, dict[str, Any]], ...] = (
        ("lora", {"rank": 2, "alpha": 2}),
        ("lora", {"rank": 2, "alpha": 6}),
        ("lora", {"rank": 2, "alpha": 2, "targets": ["out"]}),
        ("adapter", {"width": 2}),
        ("adapter", {"width": 2, "scale": 0.5}),
        ("adapter", {"width": 2, "form": "parallel"}),
        ("adapter", {"width": 2, "activation": "relu"}),
        ("prompt", {"count": 2, "tower": "image"}),
        ("prompt", {"count": 3, "tower": "image"}),
        ("prompt", {"count": 2, "tower": "text"}),
    )
    written = set()
    for name, settings in variants:
        clip = models.build("vit")
        insert(clip, name, settings)
        written.add(str(clip))
    assert len(written) == len(variants)
    assert "tokens=(2, 32), start=1" in str(clip)
    clip = models.build("custom text, no mask, last")
    insert(clip, "prompt", {"count": 2, "tower": "text"})
    assert "tokens=(2, 32), start=0" in str(clip)
