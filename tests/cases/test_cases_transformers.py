"""Folders of transformers' CLIPModel: read exactly, and refused by name where something is missing or different."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from build import text, tiny
from case_checkpoints import PICTURE, TEXTS, State, embeddings
from safetensors.torch import save_file

from everclip.config import BackboneConfig
from everclip.errors import ConfigError
from everclip.models.backbone import load_backbone
from everclip.models.export import export_backbone


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """The model's configuration and vocabulary, without weights."""
    copy = tiny(tmp_path / "copy")
    (copy / "open_clip_model.safetensors").unlink()
    return copy


# -- S09: transformers' CLIPModel -------------------------------------------------------------------------------


def as_transformers(state: State) -> State:
    """Return open_clip's weights under the names and in the forms of transformers, written from its source."""
    ours = {"": "text_model", "visual.": "vision_model"}
    found: State = {
        "logit_scale": state["logit_scale"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(state["positional_embedding"].shape[0])[None],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_projection.weight": state["text_projection"].T.contiguous(),
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
    }
    for kind in ("weight", "bias"):
        found[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        found[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        found[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        for before, tower in ours.items():
            layers = {
                k.split(".")[3 if before else 2]
                for k in state
                if k.startswith(f"{before}transformer.resblocks.")
            }
            for n in layers:
                old, new = f"{before}transformer.resblocks.{n}", f"{tower}.encoder.layers.{n}"
                for letter, part in zip("qkv", state[f"{old}.attn.in_proj_{kind}"].chunk(3), strict=True):
                    found[f"{new}.self_attn.{letter}_proj.{kind}"] = part.clone()
                for ours_, theirs in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    found[f"{new}.{theirs}.{kind}"] = state[f"{old}.{ours_}.{kind}"]
    return found


WIDTH, LAYERS = 32, 2


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A `CLIPModel` folder, and the model of open_clip that it is."""
    torch.manual_seed(0)
    model = open_clip.model.CLIP(
        embed_dim=24,
        quick_gelu=True,
        vision_cfg={"image_size": 32, "layers": LAYERS, "width": WIDTH, "head_width": 16, "patch_size": 8},
        text_cfg={"context_length": 16, "vocab_size": 49408, "width": WIDTH, "heads": 4, "layers": LAYERS},
    ).eval()
    folder = tmp_path_factory.mktemp("hf")
    part = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS}
    document = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": {**part, "num_attention_heads": 4, "max_position_embeddings": 16, "eos_token_id": 2},
        "vision_config": {**part, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
    }
    text(folder / "config.json", json.dumps(document))
    pictures = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "size": {"shortest_edge": 32},
    }
    text(folder / "preprocessor_config.json", json.dumps(pictures))
    merges = [" ".join(pair) for pair in open_clip.tokenizer.SimpleTokenizer().bpe_ranks]
    text(folder / "tokenizer.json", json.dumps({"model": {"type": "BPE", "merges": merges}}))
    save_file(as_transformers(model.state_dict()), folder / "model.safetensors")
    return folder, model


def test_s09_a_clipmodel_folder_is_read_exactly(
    clip_folder: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    folder, model = clip_folder
    found = load_backbone(str(folder))
    assert found.notes == []
    assert found.pixels.mean == (0.5, 0.4, 0.3)
    assert found.pixels.size == 32
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=16)(TEXTS)
    assert torch.equal(found.tokenise(TEXTS), tokens)
    pixels = found.preprocess(PICTURE)[None]
    with torch.no_grad():
        assert torch.equal(found.encode_image(pixels), model.encode_image(pixels, normalize=True))
        assert torch.equal(found.encode_text(tokens), model.encode_text(tokens, normalize=True))
    export_backbone(found, tmp_path / "out", {})  # compares with what plain open_clip loads


def _attention(
    x: torch.Tensor, weights: State, name: str, heads: int, mask: torch.Tensor | None
) -> torch.Tensor:
    """`CLIPAttention.forward` of transformers, from its equations."""
    batch, length, width = x.shape
    q, k, v = (
        torch.nn.functional.linear(x, weights[f"{name}.{c}_proj.weight"], weights[f"{name}.{c}_proj.bias"])
        .view(batch, length, heads, width // heads)
        .transpose(1, 2)
        for c in "qkv"
    )
    scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
    scores = scores if mask is None else scores + mask
    mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, width)
    return torch.nn.functional.linear(
        mixed, weights[f"{name}.out_proj.weight"], weights[f"{name}.out_proj.bias"]
    )


def _encoder(
    x: torch.Tensor, weights: State, tower: str, heads: int, mask: torch.Tensor | None
) -> torch.Tensor:
    def norm(value: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(
            value, value.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5
        )

    def dense(value: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    for n in range(LAYERS):
        layer = f"{tower}.encoder.layers.{n}"
        x = x + _attention(norm(x, f"{layer}.layer_norm1"), weights, f"{layer}.self_attn", heads, mask)
        hidden = dense(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        x = x + dense(hidden * torch.sigmoid(1.702 * hidden), f"{layer}.mlp.fc2")
    return x


def test_s09_the_embeddings_are_those_of_transformers_equations(
    clip_folder: tuple[Path, torch.nn.Module],
) -> None:
    folder, model = clip_folder
    w = as_transformers(model.state_dict())
    found = load_backbone(str(folder))
    pixels, tokens = found.preprocess(PICTURE)[None], found.tokenise(TEXTS)
    patches = torch.nn.functional.conv2d(
        pixels, w["vision_model.embeddings.patch_embedding.weight"], stride=8
    )
    x = torch.cat(
        [w["vision_model.embeddings.class_embedding"][None, None], patches.flatten(2).transpose(1, 2)], 1
    )
    x = x + w["vision_model.embeddings.position_embedding.weight"]
    norm = torch.nn.functional.layer_norm
    x = norm(x, (WIDTH,), w["vision_model.pre_layrnorm.weight"], w["vision_model.pre_layrnorm.bias"], 1e-5)
    x = _encoder(x, w, "vision_model", 2, None)[:, 0]
    x = norm(
        x, (WIDTH,), w["vision_model.post_layernorm.weight"], w["vision_model.post_layernorm.bias"], 1e-5
    )
    image = torch.nn.functional.normalize(x @ w["visual_projection.weight"].T, dim=-1)
    t = w["text_model.embeddings.token_embedding.weight"][tokens]
    t = t + w["text_model.embeddings.position_embedding.weight"]
    t = _encoder(t, w, "text_model", 4, torch.full((16, 16), -math.inf).triu(1))
    t = norm(
        t, (WIDTH,), w["text_model.final_layer_norm.weight"], w["text_model.final_layer_norm.bias"], 1e-5
    )
    t = t[torch.arange(2), tokens.argmax(dim=-1)] @ w["text_projection.weight"].T
    with torch.no_grad():
        assert torch.allclose(found.encode_image(pixels), image, atol=1e-6)
        assert torch.allclose(found.encode_text(tokens), torch.nn.functional.normalize(t, dim=-1), atol=1e-6)


@pytest.mark.parametrize("form", ["bin", "shards", "prefix", "merges"])
def test_s09_other_forms_of_the_folder(
    form: str, clip_folder: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    folder, model = clip_folder
    theirs = as_transformers(model.state_dict())
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        text(tmp_path / name, (folder / name).read_text())
    if form == "shards":
        names = sorted(theirs)
        halves = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
        for file, held in halves.items():
            save_file({k: theirs[k] for k in held}, tmp_path / file)
        index = {"metadata": {}, "weight_map": {k: file for file, held in halves.items() for k in held}}
        text(tmp_path / "model.safetensors.index.json", json.dumps(index))
    else:
        prefix = "clip." if form == "prefix" else ""
        torch.save({prefix + k: v for k, v in theirs.items()}, tmp_path / "pytorch_model.bin")
    if form == "merges":
        merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
        (tmp_path / "tokenizer.json").unlink()
        text(tmp_path / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    assert torch.equal(embeddings(load_backbone(str(tmp_path))), embeddings(load_backbone(str(folder))))


def test_s09_what_is_missing_or_different_is_named(
    clip_folder: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    folder, model = clip_folder
    document = json.loads((folder / "config.json").read_text())
    save_file(as_transformers(model.state_dict()), tmp_path / "model.safetensors")

    def reject(change: dict[str, Any], match: str) -> None:
        text(tmp_path / "config.json", json.dumps({**document, **change}))
        with pytest.raises(ConfigError, match=match):
            load_backbone(str(tmp_path))

    reject({"model_type": "siglip"}, "it is not a whole CLIPModel")
    reject({"text_config": {**document["text_config"], "hidden_act": "relu"}}, "hidden_act is 'relu'")
    reject(
        {"text_config": {**document["text_config"], "hidden_size": "wide"}},
        "hidden_size: expected a positive",
    )
    text(tmp_path / "config.json", json.dumps(document))
    found = load_backbone(str(tmp_path))
    assert "tokenizer: no vocabulary beside the weights; CLIP's own is assumed" in found.notes
    assert any(note.startswith("preprocessing: the weights do not state") for note in found.notes)
    image = {k: v for k, v in as_transformers(model.state_dict()).items() if k.startswith("vis")}
    save_file(image, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="holds only the image tower"):
        load_backbone(str(tmp_path))


def test_s09_shards_that_lead_out_of_the_folder_are_refused(
    clip_folder: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    folder, _ = clip_folder
    text(tmp_path / "config.json", (folder / "config.json").read_text())
    text(tmp_path / "model.safetensors.index.json", json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ConfigError, match="is not a file in the same folder"):
        load_backbone(str(tmp_path))
    text(tmp_path / "model.safetensors.index.json", json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(ConfigError, match=r"names one\.safetensors, which does not exist"):
        load_backbone(str(tmp_path))


def test_s09_weights_of_another_activation_are_refused_for_a_named_architecture(
    clip_folder: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    """The configuration beside the file says quick_gelu; open_clip's ViT-B-32 runs GELU."""
    folder, _ = clip_folder
    weights_file = str(folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"trained with QuickGELU .*config\.json beside them"):
        load_backbone(BackboneConfig(name="ViT-S-32-alt", weights=weights_file))


def test_s09_weights_of_flax_alone_are_said(
    clip_folder: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    text(tmp_path / "config.json", (clip_folder[0] / "config.json").read_text())
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"flax_model\.msgpack, which PyTorch does not read"):
        load_backbone(str(tmp_path))


def test_s09_a_clipmodel_in_the_hubs_cache_is_read(
    clip_folder: tuple[Path, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--clip"
    shutil.copytree(clip_folder[0], repository / "snapshots/0123456789abcdef")
    text(repository / "refs/main", "0123456789abcdef")
    found = load_backbone("hf-hub:org/clip")
    assert torch.equal(embeddings(found), embeddings(load_backbone(str(clip_folder[0]))))
