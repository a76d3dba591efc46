"""Every kind of model that open_clip builds gives open_clip's own embeddings, bit for bit."""

import socket
from pathlib import Path
from typing import Any

import backbone_zoo as zoo
import open_clip
import pytest
import torch

from everclip.models.backbone import Backbone, load_backbone

TEXTS = ["a red square", "Two dogs, one hat!", "", "a very long text " * 20]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def embeddings(backbone: Backbone, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        pixels = torch.stack([backbone.preprocess(p) for p in zoo.pictures()])
        return backbone.encode_image(pixels), backbone.encode_text(tokens)


def same_as_open_clip(folder: Path) -> Backbone:
    backbone = load_backbone(str(folder))
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    assert torch.equal(backbone.tokenise(TEXTS), tokens)
    for ours, theirs in zip(
        embeddings(backbone, tokens), zoo.reference(f"local-dir:{folder}", tokens), strict=True
    ):
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)
    return backbone


@pytest.mark.parametrize("kind", zoo.MODELS)
def test_every_kind_of_model_gives_open_clips_embeddings(kind: str, tmp_path: Path) -> None:
    backbone = same_as_open_clip(zoo.write(tmp_path / kind, zoo.MODELS[kind]))
    assert backbone.notes == []
    assert backbone.pixels.mean == tuple(zoo.PREPROCESS["mean"])
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_the_logit_bias_of_siglip_is_kept(tmp_path: Path) -> None:
    folder = zoo.write(tmp_path, zoo.MODELS["siglip"])
    bias = load_backbone(str(folder)).clip.get_parameter("logit_bias")
    assert bias.item() == pytest.approx(-10, abs=0.2)
    assert torch.equal(bias, zoo.make(zoo.MODELS["siglip"]).logit_bias)


def test_a_logit_scale_with_a_dimension_is_a_scalar_to_losses(tmp_path: Path) -> None:
    folder = zoo.write(tmp_path, {**zoo.MODELS["vit"], "nonscalar_logit_scale": True})
    backbone = load_backbone(str(folder))
    assert backbone.clip.get_parameter("logit_scale").shape == (1,)
    assert backbone.logit_scale.shape == ()


@pytest.mark.parametrize("kind", ["resnet", "siglip"])
def test_the_towers_of_every_kind_have_a_fingerprint(kind: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(zoo.write(tmp_path, zoo.MODELS[kind])))
    before = backbone.fingerprints()
    state = backbone.clip.state_dict()
    buffers = [k for k in state if "running_mean" in k] or ["visual.trunk.pos_embed"]
    state[buffers[0]].add_(1)
    assert backbone.fingerprints()["image"] != before["image"]
    assert backbone.fingerprints()["text"] == before["text"]


# -- tokenizers of transformers ---------------------------------------------------------------------------------


def write_tokenizer(folder: Path, words: list[str]) -> None:
    """Write a small word tokenizer as transformers stores one."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def siglip_with_tokenizer(vocab_size: int = 40) -> dict[str, Any]:
    config = {**zoo.MODELS["siglip"]}
    config["text_cfg"] = {
        **config["text_cfg"],
        "vocab_size": vocab_size,
        "hf_tokenizer_name": "nobody/has-this",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    return config


def test_a_tokenizer_of_transformers_lies_beside_the_weights(tmp_path: Path) -> None:
    folder = zoo.write(tmp_path, siglip_with_tokenizer())
    write_tokenizer(folder, ["a", "red", "square", "two", "dogs"])
    backbone = same_as_open_clip(folder)
    assert backbone.layout is not None
    assert {p.name for p in backbone.layout.tokenizer_files} >= {"tokenizer.json", "tokenizer_config.json"}


def test_a_text_tower_of_transformers_is_built_from_the_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    cache = tmp_path / "hub" / "models--org--tower"
    snapshot = cache / "snapshots" / "abc1234"
    tower = transformers.RobertaConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=30,
    )
    tower.save_pretrained(snapshot)
    write_tokenizer(snapshot, ["a", "red"])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc1234")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    text = {"hf_model_name": str(snapshot), "hf_tokenizer_name": "org/tower", "context_length": 12}
    config = {"embed_dim": 24, "vision_cfg": zoo.VIT, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.model.CustomTextCLIP(
        **{**config, "text_cfg": {**text, "hf_model_pretrained": False}}
    ).eval()
    named = {**config, "text_cfg": {**text, "hf_model_name": "org/tower"}}
    folder = zoo_folder(tmp_path / "model", named, model)
    backbone = load_backbone(str(folder))
    tokens = backbone.tokenise(["a red", "red"])
    with torch.no_grad():
        assert torch.equal(backbone.encode_text(tokens), model.encode_text(tokens, normalize=True))


def zoo_folder(folder: Path, model_cfg: dict[str, Any], model: torch.nn.Module) -> Path:
    import json

    from safetensors.torch import save_file

    folder.mkdir()
    document = {"model_cfg": model_cfg, "preprocess_cfg": zoo.PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


# -- the real sizes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP"])
def test_the_real_sizes_give_open_clips_embeddings(name: str, tmp_path: Path) -> None:
    config = open_clip.get_model_config(name)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    folder = zoo.write(tmp_path / "model", config, preprocess)
    if "hf_tokenizer_name" in config["text_cfg"]:
        write_tokenizer(folder, ["a", "red", "square", "two", "dogs"])
    same_as_open_clip(folder)
