"""Damaged and odd files of a model: each is refused by a message that names the file and what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import everclip
from everclip.config import BackboneConfig
from everclip.errors import ConfigError
from everclip.models.backbone import load_backbone
from everclip.models.tokenizers import tokenizer_settings
from everclip.models.transformers_layout import model_config, preprocessing
from everclip.models.weights import read_weights

BUILTIN = Path(everclip.__file__).parent / "models/builtin/tiny"
END_OF_ZIP = b"PK\x05\x06" + b"\0" * 4


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"text_config": [1]}, "text_config"),
        ({"vision_config": "abc"}, "vision_config"),
        ({"projection_dim": "x"}, "projection_dim"),
        ({"projection_dim": None}, "projection_dim"),
        ({"vision_config": {"image_size": [224, 224]}}, "image_size"),
        ({"vision_config": {"hidden_size": 1e400}}, "hidden_size"),
    ],
)
def test_s09_a_configuration_of_other_types_names_the_key(
    document: dict[str, Any], named: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", **document}))
    with pytest.raises(ConfigError, match=f"config.json: {named}: expected"):
        model_config(tmp_path)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"resample": [3]}, "resample"),
        ({"size": [1, 2]}, "size"),
        ({"size": {"shortest_edge": [1]}}, "size"),
        ({"size": {}}, "size"),
        ({"size": 224, "crop_size": {"height": 224, "width": 200}}, "size"),
    ],
)
def test_s09_preprocessing_of_other_types_names_the_key(
    document: dict[str, Any], named: str, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"preprocessor_config.json: {named}: expected"):
        preprocessing(tmp_path)


def test_s09_equal_sides_are_one_side(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 96, "width": 96.0}}))
    assert preprocessing(tmp_path) == {"resize_mode": "squash", "size": 96}


def test_s09_merges_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"merges": [1, 2]}}))
    with pytest.raises(ConfigError, match="tokenizer's files cannot be read"):
        tokenizer_settings(tmp_path, 49408)


@pytest.mark.parametrize("start", [b"", b"PK\x03\x04"])
def test_b25_a_damaged_zip_archive_is_refused(start: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    directory = b"\1\0\1\0" + (64).to_bytes(4, "little") + (16).to_bytes(4, "little") + b"\0\0"
    file.write_bytes(start + b"no archive" * 50 + END_OF_ZIP + directory)
    with pytest.raises(ConfigError, match=r"weights\.pt is damaged .*fetch or copy it again"):
        read_weights(file, 1000, ())


def test_b25_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_weights(file, 1000, ())


def test_s09_a_shard_without_names_is_named(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "one.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "two.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.bin", "b": "two.bin"}}))
    with pytest.raises(ConfigError, match=r"one\.bin: expected weights by name, found list"):
        read_weights(index, 1000, ())


# -- files that are no whole model ----------------------------------------------------------------------------


def test_adapters_say_that_they_must_be_merged(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.proj.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}, file)
    with pytest.raises(ConfigError, match=r"an adapter \(LoRA\).*merge_and_unload"):
        load_backbone(BackboneConfig(name="builtin:tiny", weights=str(file)))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"It holds an adapter \(LoRA\).*merge_and_unload"):
        load_backbone(str(tmp_path))


def test_weights_in_several_files_are_named_by_their_index(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"backbone\.weights=.*/model\.safetensors\.index\.json"):
        load_backbone(str(tmp_path))


def test_s09_a_part_of_the_weights_is_called_one(tmp_path: Path) -> None:
    source = load_file(BUILTIN / "open_clip_model.safetensors")
    part = {name: tensor for name, tensor in source.items() if not name.startswith("ln_final")}
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(ConfigError, match="holds only a part of the model"):
        load_backbone(BackboneConfig(name="builtin:tiny", weights=str(tmp_path / "part.safetensors")))


def test_weights_with_a_head_beside_the_model_say_what_to_leave_out(tmp_path: Path) -> None:
    state = load_file(BUILTIN / "open_clip_model.safetensors")
    state["classifier.weight"] = torch.zeros(4, 4)
    (tmp_path / "open_clip_config.json").write_text((BUILTIN / "open_clip_config.json").read_text())
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(
        ConfigError,
        match=r"holds all weights of the model, and 1 that the model does not have.*startswith\('classifier\.'\)",
    ):
        load_backbone(BackboneConfig(name=str(tmp_path)), None)
