"""Weights, activation, pictures and vocabulary that do not belong together are refused, or recorded if unknowable."""

import gzip
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backbone_zoo as zoo
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_backbones_places import TOKENS, architecture, small, text_of

from everclip.config import BackboneConfig
from everclip.errors import ConfigError
from everclip.models import weights
from everclip.models.backbone import load_backbone

WEIGHTS, CONFIG, MERGES = "open_clip_model.safetensors", "open_clip_config.json", "merges.txt.gz"
__all__ = ["architecture"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.write(tmp_path_factory.mktemp("zoo") / "vit", zoo.MODELS["vit"])


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads((folder / CONFIG).read_text())
    change(document)
    (folder / CONFIG).write_text(json.dumps(document))
    return folder


# -- activation ---------------------------------------------------------------------------------------------------


def test_a_tag_with_the_other_activation_is_refused_with_the_name_to_use(
    architecture: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everclip.models.tags._check_hash", lambda path, url: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cache/clip"
    folder.mkdir(parents=True)
    torch.save(load_file(model / WEIGHTS), folder / "small-arch-file-12345678.pt")
    with pytest.raises(ConfigError, match=r"the tag 'file'\): use backbone\.name=Small-quickgelu, or set "):
        small("Small", "file")
    right = text_of(small("Small-quickgelu", "file"))
    forced = small("Small", "file", force_quick_gelu=True)
    assert torch.equal(text_of(forced), right)
    other = small("Small", "file", force_quick_gelu=False)
    assert not torch.equal(text_of(other), right)
    assert any("GELU by backbone.force_quick_gelu, against the tag 'file'" in note for note in other.notes)
    # The other way round: trained with GELU, run with QuickGELU.
    architecture["file"]["quick_gelu"] = False
    with pytest.raises(ConfigError, match=r"trained with GELU .*backbone\.name=Small, or set"):
        small("Small-quickgelu", "file")


def test_every_contradicting_tag_of_open_clip_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """open_clip only warns for these; the name it would have to be is the one that exists."""
    from everclip.models.activation import decide_activation

    contradicting = 0
    for name, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(name)
        trained_with = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
        if trained_with == bool(config.get("quick_gelu")):
            assert decide_activation(name, config, trained_with, None, "") == []
            continue
        contradicting += 1
        with pytest.raises(ConfigError, match=r"force_quick_gelu") as error:
            decide_activation(name, config, trained_with, None, "")
        if name != "roberta-ViT-B-32":
            assert f"backbone.name={name}-quickgelu" in str(error.value)
    assert contradicting >= 20


def test_a_file_with_a_downloads_name_or_openais_form_tells_its_activation(
    architecture: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    state = load_file(model / WEIGHTS)
    file = tmp_path / "small-arch-file-12345678.pt"
    torch.save(state, file)
    with pytest.raises(ConfigError, match=r"use backbone\.name=Small-quickgelu"):
        small("Small", file)
    own = tmp_path / "own.pt"
    torch.save({**state, "input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)}, own)
    with pytest.raises(
        ConfigError, match=r"own\.pt is in OpenAI's own form\): use backbone\.name=Small-quickgelu"
    ):
        small("Small", own)
    assert torch.equal(text_of(small("Small-quickgelu", own)), text_of(load_backbone(str(model))))


def test_a_configuration_beside_the_file_decides(architecture: dict[str, Any], copy: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{CONFIG} beside them\): use backbone\.name=Small-quickgelu"):
        small("Small", copy / WEIGHTS)
    backbone = small("Small-quickgelu", copy / WEIGHTS)
    assert backbone.notes == []
    assert backbone.pixels.mean == tuple(zoo.PREPROCESS["mean"])
    edit(copy, lambda d: d["model_cfg"]["vision_cfg"].update(patch_size=16))
    with pytest.raises(ConfigError, match=r"in vision_cfg\.patch_size\. Use the folder"):
        small("Small-quickgelu", copy / WEIGHTS)


# -- pictures -----------------------------------------------------------------------------------------------------


def test_a_missing_preprocessing_is_assumed_and_said(copy: Path) -> None:
    edit(copy, lambda d: d.pop("preprocess_cfg"))
    backbone = load_backbone(str(copy))
    assert backbone.pixels.mean == open_clip.OPENAI_DATASET_MEAN
    assert len(backbone.notes) == 1
    assert "mean (0.48145466, 0.4578275, 0.40821073), std" in backbone.notes[0]
    edit(
        copy,
        lambda d: d.update(preprocess_cfg={"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}),
    )
    assert "do not state interpolation bicubic; open_clip's defaults" in load_backbone(str(copy)).notes[0]


def test_a_size_that_the_tower_does_not_take_is_refused(copy: Path) -> None:
    edit(copy, lambda d: d["preprocess_cfg"].update(size=[40, 40]))
    with pytest.raises(
        ConfigError, match=r"preprocess_cfg\.size is \[40, 40\], but the image tower takes 32"
    ):
        load_backbone(str(copy))
    edit(copy, lambda d: d["preprocess_cfg"].update(size=[32, 32]))
    assert load_backbone(str(copy)).pixels.size == 32
    edit(copy, lambda d: d["model_cfg"]["vision_cfg"].update(image_size=[32, 48]))
    with pytest.raises(ConfigError, match=r"size is \[32, 32\]|48 x 32"):
        load_backbone(BackboneConfig(name=str(copy), weights="random"))


def test_another_image_size_is_interpolated_only_when_asked_for(copy: Path) -> None:
    expected = zoo.reference(f"local-dir:{copy}", TOKENS, force_image_size=48)
    backbone = load_backbone(BackboneConfig(name=str(copy), image_size=48))
    with torch.no_grad():
        found = backbone.encode_image(torch.stack([backbone.preprocess(p) for p in zoo.pictures()]))
    assert torch.equal(found, expected[0])
    assert backbone.pixels.size == 48
    assert backbone.notes == ["image size: 16 position embeddings interpolated to 36"]
    edit(copy, lambda d: d["model_cfg"]["vision_cfg"].update(image_size=48))
    with pytest.raises(
        ConfigError, match=r"for images of 32 pixels, the configuration says 48: .*image_size=48"
    ):
        load_backbone(str(copy))


def test_towers_whose_positions_are_not_interpolated_say_so(tmp_path: Path) -> None:
    folder = zoo.write(tmp_path / "resnet", zoo.MODELS["resnet"])
    with pytest.raises(ConfigError, match=r"position embeddings .*cannot be interpolated"):
        load_backbone(BackboneConfig(name=str(folder), image_size=96))
    edit(
        folder,
        lambda d: d["model_cfg"]["vision_cfg"].update(timm_model_name="vit_tiny_patch16_224", image_size=192),
    )
    with pytest.raises(ConfigError, match=r"made for images of 224, .*set backbone\.image_size=224"):
        load_backbone(BackboneConfig(name=str(folder), weights="random"))
    backbone = load_backbone(BackboneConfig(name=str(folder), weights="random", image_size=224))
    assert backbone.encode_image(torch.zeros(1, 3, backbone.pixels.size, backbone.pixels.size)).shape == (
        1,
        24,
    )


def test_a_tag_and_the_configuration_beside_its_weights_must_agree(
    architecture: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_backbones_places import into_hub

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    into_hub(model, tmp_path, "org/quick")
    architecture["quick"]["mean"] = (0.1, 0.2, 0.3)
    with pytest.raises(
        ConfigError, match=r"differ in mean \(0\.1, 0\.2, 0\.3\) against .*name=hf-hub:org/quick"
    ):
        small("Small-quickgelu", "quick")
    decided = small("Small-quickgelu", "quick", preprocess={"mean": (0.5, 0.4, 0.3)})
    assert decided.pixels.mean == (0.5, 0.4, 0.3)


# -- vocabulary -----------------------------------------------------------------------------------------------------


def test_a_vocabulary_that_does_not_fit_the_embedding_is_refused(copy: Path) -> None:
    (copy / MERGES).write_bytes(gzip.compress(b"#version: other\na b\nc d"))
    with pytest.raises(
        ConfigError, match=r"has 516 tokens, but the text tower embeds 49408.*merges\.txt\.gz"
    ):
        load_backbone(str(copy))


def test_weights_for_another_vocabulary_or_context_are_refused(copy: Path) -> None:
    for key, value, match in (
        ("vocab_size", 514, r"The vocabulary of the weights has 49408 tokens"),
        ("context_length", 20, r"The weights read 16 tokens"),
    ):
        edit(copy, lambda d, key=key, value=value: d["model_cfg"]["text_cfg"].update({key: value}))
        with pytest.raises(ConfigError, match=match):
            load_backbone(str(copy))
        edit(copy, lambda d: d["model_cfg"]["text_cfg"].update(vocab_size=49408, context_length=16))


def test_an_end_of_text_that_would_not_be_found_is_refused(copy: Path) -> None:
    edit(copy, lambda d: d["model_cfg"]["text_cfg"].update(pool_type="eos", eos_id=2))
    with pytest.raises(ConfigError, match="ends a text with token 49407, but the text tower looks for 2"):
        load_backbone(str(copy))


def test_a_missing_tokenizer_says_what_is_missing_and_where(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    edit(copy, lambda d: d["model_cfg"]["text_cfg"].update(hf_tokenizer_name="org/words"))
    with pytest.raises(ConfigError) as error:
        load_backbone(str(copy))
    for part in (
        "'org/words', which is not on this machine",
        str(copy),
        "/nowhere/models--org--words",
        "hf download org/words",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("path", ["../../merges.txt.gz", "/etc/merges.txt.gz"])
def test_a_vocabulary_cannot_leave_the_folder(copy: Path, path: str) -> None:
    edit(copy, lambda d: d["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"bpe_path": path}))
    with pytest.raises(ConfigError, match="leaves the model's folder"):
        load_backbone(str(copy))


def test_code_that_a_tokenizer_brings_is_not_executed(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    text = {"hf_tokenizer_name": "org/words", "tokenizer_kwargs": {"trust_remote_code": True}}
    edit(copy, lambda d: d["model_cfg"]["text_cfg"].update(text))
    with pytest.raises(ConfigError, match="brings its own code, which is not executed"):
        load_backbone(str(copy))


# -- files of weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {
            "epoch": 3,
            "name": "run",
            "state_dict": {f"module.{k}": v for k, v in s.items()},
            "optimizer": {},
        },
        lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
        lambda s: {**s, "logit_scale": s["logit_scale"].reshape(1)},
    ],
    ids=["open_clip's trainer", "compiled", "double", "scale with a dimension"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_checkpoints_of_training_programs_are_read(
    wrap: Callable[[dict[str, Any]], Any],
    legacy: bool,
    architecture: dict[str, Any],
    model: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "epoch_3.pt"
    torch.save(wrap(load_file(model / WEIGHTS)), file, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(text_of(small("Small-quickgelu", file)), text_of(load_backbone(str(model))))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_nothing_in_a_file_is_executed(
    legacy: bool, architecture: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pt", "plain.bin"):
        with pytest.raises(ConfigError, match="not a checkpoint of plain tensors"):
            small("Small", tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_torchscript_archive_is_refused_by_name(architecture: dict[str, Any], tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "openai.pt"))
    with pytest.raises(ConfigError, match="TorchScript archive"):
        small("Small", tmp_path / "openai.pt")


def test_files_are_bounded_by_the_model_they_are_for(
    architecture: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "EXTRA", 0)
    large = {"a": torch.zeros(20_000_000)}
    save_file(large, tmp_path / "large.safetensors")
    torch.save(large, tmp_path / "large.pt")
    with zipfile.ZipFile(tmp_path / "small.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(90_000_000))
    (tmp_path / "small.zip").rename(tmp_path / "bomb.bin")
    assert (tmp_path / "bomb.bin").stat().st_size < 1_000_000
    for name in ("large.safetensors", "large.pt", "bomb.bin"):
        with pytest.raises(ConfigError, match=r"holds \d+ MB; the limit for this model is \d+ MB"):
            small("Small", tmp_path / name)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({}, "expected weights by name"),
        ([1, 2], "expected weights by name, found list"),
        ({"epoch": 3, "note": "x"}, "epoch, note are not tensors"),
        ({"vision_model.a": torch.zeros(1)}, "transformers' layout"),
        ({"model/backbone.clip.visual.proj": torch.zeros(1)}, "checkpoint of everclip"),
        ({"text.a": torch.zeros(1)}, r"model_cfg\.custom_text: true"),
        ({"a": torch.zeros(1)}, "the architecture they were trained with"),
    ],
)
def test_other_things_in_a_file_are_named(
    content: Any, match: str, architecture: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ConfigError, match=match):
        small("Small", tmp_path / "odd.pt")


def test_damaged_files_are_clear_errors(architecture: dict[str, Any], model: Path, tmp_path: Path) -> None:
    state = load_file(model / WEIGHTS)
    torch.save(state, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    for name, damaged in (
        ("half.pt", data[: len(data) // 2]),
        ("empty.pt", b""),
        ("text.bin", b"<html>not found"),
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ConfigError, match=f"{name} is not a checkpoint of plain tensors"):
            small("Small", tmp_path / name)
    state["visual.proj"][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(ConfigError, match=r"'visual\.proj' hold NaN"):
        small("Small-quickgelu", tmp_path / "nan.safetensors")


def test_an_old_torch_does_not_read_its_own_format(
    architecture: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(load_file(model / WEIGHTS), tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    with pytest.raises(ConfigError, match=r"safe with torch 2\.6 or newer \(found 2\.5\.1"):
        small("Small-quickgelu", tmp_path / "x.pt")


def test_a_model_with_a_logit_bias_takes_weights_without_one(tmp_path: Path) -> None:
    plain = {**zoo.MODELS["vit"]}
    folder = zoo.write(tmp_path / "a", plain)
    edit(folder, lambda d: d["model_cfg"].update(init_logit_bias=-10))
    backbone = load_backbone(str(folder))
    assert backbone.clip.get_parameter("logit_bias").item() == -10
    assert backbone.notes == ["logit bias: the weights have none; it starts at -10"]
