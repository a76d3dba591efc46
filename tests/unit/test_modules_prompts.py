"""Prompts against twins that do the same with plain tensors; texts keep their end, pooling finds its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import module_models as models
import pytest
import torch

from everclip.errors import ConfigError
from everclip.models.backbone import load_backbone
from everclip.models.modules import insert
from everclip.models.modules.prompts import Prompt, TextPrompt
from everclip.models.modules.towers import tower_of


def prompts_of(clip: Any) -> dict[str, torch.Tensor]:
    return {name: module.tokens for name, module in clip.named_modules() if isinstance(module, Prompt)}


@torch.no_grad()
def image_twin(plain: Any, prompts: list[torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """Equations 4 to 8 of VPT, on the tensors of a model without prompts."""
    visual, count = plain.visual, len(prompts[0])
    x = visual._embeds(pixels)
    for number, block in enumerate(visual.transformer.resblocks):
        if number < len(prompts):
            own = prompts[number].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], own, x[:, 1 + (count if number else 0) :]], dim=1)
        x = block(x)
    pooled, _ = visual._pool(torch.cat([x[:, :1], x[:, 1 + count :]], dim=1))
    return pooled @ visual.proj


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("model", models.CASES)
def test_image_prompts_are_those_of_vpt(model: str, depth: int) -> None:
    clip, plain = models.build(model), models.build(model)
    models.shake(clip, insert(clip, "prompt", {"count": 3, "depth": depth}).parameters)
    pixels, _ = models.inputs(clip)
    found = [prompts_of(clip)[f"visual.transformer.resblocks.{i}.prompt"] for i in range(depth)]
    with torch.no_grad():
        assert torch.allclose(clip.encode_image(pixels), image_twin(plain, found, pixels), atol=1e-6)


@torch.no_grad()
def text_twin(plain: Any, prompts: list[torch.Tensor], ids: torch.Tensor, start: int) -> torch.Tensor:
    """Text by text: embeddings of the words with the prompts between them; for towers that pool one place."""
    root = getattr(plain, "text", plain)
    pool = getattr(root, "text_pool_type", None) or root.pool_type
    rows = []
    for row in ids:
        end = len(row) - 1 if pool == "last" else int((row == 513).nonzero()[0])
        words = [root.token_embedding.weight[i] for i in row]
        moved = [*words[:start], *prompts[0], *words[start:]]
        place = end if pool == "last" else end + len(prompts[0])
        if place >= len(row):
            place = len(row) - 1
            moved[place] = words[end]
        elif pool == "last":
            moved[place] = words[end]
        x = (torch.stack(moved[: len(row)]) + root.positional_embedding)[None]
        for number, block in enumerate(root.transformer.resblocks):
            if 0 < number < len(prompts):
                x = torch.cat([x[:, :start], prompts[number][None], x[:, start + len(prompts[0]) :]], dim=1)
            x = block(x, attn_mask=root.attn_mask)
        x = root.ln_final(x)[:, place]
        projection = root.text_projection
        rows.append(projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection)
    return torch.cat(rows)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("model", "start"),
    [("vit", 1), ("custom text", 1), ("custom text, eos", 1), ("custom text, no mask, last", 0)],
)
def test_text_prompts_stand_after_the_start_and_the_end_is_pooled(model: str, start: int, depth: int) -> None:
    clip, plain = models.build(model), models.build(model)
    models.shake(clip, insert(clip, "prompt", {"tower": "text", "count": 3, "depth": depth}).parameters)
    root = "text." if hasattr(clip, "text") else ""
    names = [f"{root}token_embedding.prompt", f"{root}transformer.resblocks.1.prompt"]
    found = [prompts_of(clip)[name] for name in names[:depth]]
    ids = models.tokens([0, 1, 4, 7, 8, 9, 10, 20])  # from empty to far too long for the context
    with torch.no_grad():
        assert torch.allclose(clip.encode_text(ids), text_twin(plain, found, ids, start), atol=1e-6)


@pytest.mark.parametrize("model", ["vit", "quick-gelu, no pre-norm", "custom text"])
def test_coupled_image_tokens_are_a_linear_map_of_the_text_tokens(model: str) -> None:
    """MaPLe, equation 5: a map of its own for each block; the first block's tokens pass the tower's first norm."""
    clip, plain = models.build(model), models.build(model)
    shaken = {"tower": "both", "count": 3, "depth": 2, "coupled": True}
    models.shake(clip, insert(clip, "prompt", shaken).parameters)
    root, start = getattr(clip, "text", clip), 1
    texts = [root.token_embedding.prompt.tokens, root.transformer.resblocks[1].prompt.tokens]
    made = []
    for number, tokens in enumerate(texts):
        found = clip.visual.transformer.resblocks[number].prompt
        assert {name: tuple(p.shape) for name, p in found.named_parameters()} == {
            "weight": (32, 32),
            "bias": (32,),
        }
        image = tokens @ found.weight.T + found.bias
        made.append(plain.visual.ln_pre(image) if number == 0 else image)
    pixels, _ = models.inputs(clip)
    ids = models.tokens([0, 1, 4, 9, 20])
    with torch.no_grad():
        assert torch.allclose(clip.encode_image(pixels), image_twin(plain, made, pixels), atol=1e-6)
        assert torch.allclose(clip.encode_text(ids), text_twin(plain, texts, ids, start), atol=1e-6)


def test_a_loss_of_images_alone_reaches_the_coupled_text_tokens(micro_folder: Path) -> None:
    backbone = load_backbone(str(micro_folder / "model"))
    new = insert(
        backbone.clip,
        "prompt",
        {"tower": "both", "init": "ab", "depth": 2, "coupled": True},
        tokenise=backbone.tokenise,
    ).parameters
    clip = backbone.clip.requires_grad_(False)
    for name in new:
        clip.get_parameter(name).requires_grad_(True)
    pixels = torch.rand(2, 3, backbone.clip.visual.image_size[0], backbone.clip.visual.image_size[0])
    clip.encode_image(pixels)[:, 0].sum().backward()
    assert sum("visual." in name for name in new) == 4
    for name in new:
        grad = clip.get_parameter(name).grad
        assert grad is not None
        assert grad.abs().max() > 0, name


def test_the_fingerprint_of_the_image_tower_covers_coupled_text_tokens(micro_folder: Path) -> None:
    """Or cached image embeddings would outlive a change of the tokens that they depend on."""
    backbone = load_backbone(str(micro_folder / "model"))
    insert(backbone.clip, "prompt", {"tower": "both", "count": 2, "coupled": True})
    before = backbone.fingerprints()
    with torch.no_grad():
        backbone.clip.token_embedding.prompt.tokens += 0.1
    after = backbone.fingerprints()
    assert before["text"] != after["text"]
    assert before["image"] != after["image"]


def test_prompts_from_words_are_first_the_template_with_these_words(micro_folder: Path) -> None:
    plain, grown = (load_backbone(str(micro_folder / "model")) for _ in range(2))
    insert(grown.clip, "prompt", {"tower": "text", "init": "ab"}, tokenise=grown.tokenise)
    texts = ["cat", "a b", "", "dog cat"]
    with torch.no_grad():
        found = grown.encode_text(grown.tokenise(texts))
        wanted = plain.encode_text(plain.tokenise([f"ab {text}" for text in texts]))
    assert torch.equal(found, wanted)


def test_words_need_a_tokeniser_and_must_leave_room(micro_folder: Path) -> None:
    backbone = load_backbone(str(micro_folder / "model"))
    with pytest.raises(ConfigError, match="tokenizer"):
        insert(backbone.clip, "prompt", {"tower": "text", "init": "ab"})
    with pytest.raises(ConfigError, match="no room"):
        insert(
            backbone.clip,
            "prompt",
            {"tower": "text", "init": "much too long"},
            tokenise=backbone.tokenise,
        )


def test_gradients_reach_every_prompt() -> None:
    clip = models.build("vit")
    new = insert(clip, "prompt", {"tower": "both", "count": 2, "depth": "all"}).parameters
    clip.requires_grad_(False)
    for name in new:
        clip.get_parameter(name).requires_grad_(True)
    pixels, ids = models.inputs(clip)
    (clip.encode_image(pixels)[:, 0].sum() + clip.encode_text(ids)[:, 0].sum()).backward()
    for name in new:
        grad = clip.get_parameter(name).grad
        assert grad is not None
        assert grad.abs().max() > 0, name


@pytest.mark.parametrize(("pad", "filler"), [(0, 1), (1, 0), (None, 1)])
def test_places_that_are_kept_free_do_not_look_like_padding(pad: int | None, filler: int) -> None:
    root = tower_of(models.build("vit"), "text").root
    if pad is not None:
        root.pad_id = pad
    prompt = TextPrompt(torch.zeros(2, 32), root)
    assert prompt.filler == filler
    assert prompt.end_id not in (filler, pad)


def test_there_are_eight_prompts_where_no_number_is_given() -> None:
    clip = models.build("vit")
    insert(clip, "prompt", {"tower": "both"})
    assert {len(tokens) for tokens in prompts_of(clip).values()} == {8}
