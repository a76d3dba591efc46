"""Checkpoints as people have them: several models in one file, prefixes, other layouts, numbers out of range."""

from __future__ import annotations

import argparse
import collections
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from build import text, tiny, weights
from case_checkpoints import State, embeddings
from safetensors.torch import save_file
from typer.testing import CliRunner

from everclip.cli.main import app
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


def other(state: State) -> State:
    draw = torch.Generator().manual_seed(1)
    return {k: torch.randn(v.shape, generator=draw) if v.dim() else v for k, v in state.items()}


def saved(folder: Path, content: Any, name: str = "epoch_12.pt", **options: Any) -> Path:
    torch.save(content, folder / name, **options)
    return folder


# -- B25: several models in one file, and what cannot be read without executing it -------------------------------


def test_b25_a_model_beside_its_average_is_asked_for(
    folder: Path, state: State, expected: torch.Tensor
) -> None:
    saved(folder, {"model_ema": state, "model": other(state)})
    with pytest.raises(ConfigError, match=r"backbone.key=model_ema or backbone.key=model") as caught:
        load_backbone(str(folder))
    assert "'model_ema', 'model'" in str(caught.value)
    chosen = load_backbone(BackboneConfig(name=str(folder), key="model_ema"))
    assert torch.equal(embeddings(chosen), expected)
    assert chosen.notes == ["weights: taken from 'model_ema' of the file"]
    assert not torch.equal(embeddings(load_backbone(BackboneConfig(name=str(folder), key="model"))), expected)
    with pytest.raises(ConfigError, match=r"'ema'.*Known keys: model_ema, model"):
        load_backbone(BackboneConfig(name=str(folder), key="ema"))


def test_b25_a_teacher_beside_its_student_is_asked_for_too(
    folder: Path, state: State, expected: torch.Tensor
) -> None:
    both = {
        **{f"student.{k}": v for k, v in other(state).items()},
        **{f"teacher.{k}": v for k, v in state.items()},
    }
    saved(folder, {"state_dict": both})
    with pytest.raises(
        ConfigError, match=r"backbone\.key=state_dict\.student or backbone\.key=state_dict\.teacher"
    ):
        load_backbone(str(folder))
    chosen = load_backbone(BackboneConfig(name=str(folder), key="state_dict.teacher"))
    assert torch.equal(embeddings(chosen), expected)


def test_b25_two_keys_of_the_same_numbers_need_no_answer(
    folder: Path, state: State, expected: torch.Tensor
) -> None:
    saved(folder, {"model": state, "model_ema": {k: v.clone() for k, v in state.items()}})
    assert torch.equal(embeddings(load_backbone(str(folder))), expected)


def test_b25_an_average_alone_is_taken_and_said(folder: Path, state: State, expected: torch.Tensor) -> None:
    saved(
        folder,
        {"epoch": 3, "ema": {"n_averaged": torch.tensor(9), **{f"module.{k}": v for k, v in state.items()}}},
    )
    found = load_backbone(str(folder))
    assert torch.equal(embeddings(found), expected)
    assert "weights: taken from 'ema.module' of the file" in found.notes
    assert any("n_averaged" in note for note in found.notes)


def test_b25_numbers_of_numpy_do_no_harm(folder: Path, state: State, expected: torch.Tensor) -> None:
    lr = {"param_groups": [{"lr": np.float32(1e-5)}], "state": {}}
    wrapped = {"module." + k: v for k, v in state.items()}
    saved(
        folder,
        {"epoch": 12, "state_dict": wrapped, "best": np.float64(0.51), "optimizer": lr, "n": np.int64(3)},
    )
    found = load_backbone(str(folder))
    assert torch.equal(embeddings(found), expected)
    assert found.notes == []


@pytest.mark.parametrize("whole", [False, True])
def test_b25_a_refused_file_comes_with_its_offender_and_the_line_that_converts_it(
    whole: bool, base: Path, folder: Path, state: State, expected: torch.Tensor
) -> None:
    if whole:
        document = json.loads((base / "open_clip_config.json").read_text())
        clip = open_clip.model.CLIP(**document["model_cfg"])
        clip.load_state_dict(state)
        content: Any = clip
    else:
        optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}
        content = {
            "model": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
            "args": argparse.Namespace(lr=1e-5),
            "optimizer": optimizer,
        }
    saved(folder, content, "namespace.pt")
    with pytest.raises(ConfigError, match="Nothing was executed") as caught:
        load_backbone(str(folder))
    message = str(caught.value)
    assert ("open_clip.model.CLIP" if whole else "argparse.Namespace") in message
    assert "weights_only" not in message.splitlines()[0]
    line = next(part for part in message.splitlines() if part.strip().startswith("python -c "))
    program = shlex.split(line)[2]
    exec(program, {})  # a process of its own would take seconds to import torch
    converted = folder / "namespace-tensors.pt"
    found = load_backbone(BackboneConfig(name=str(folder), weights=str(converted)))
    assert torch.equal(embeddings(found), expected)


def test_b25_torchscript_is_refused_with_a_line_too(folder: Path, state: State) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "openai.pt"))
    with pytest.raises(ConfigError, match=r"python -c .*torch\.jit\.load"):
        load_backbone(str(folder))


# -- B26: prefixes, keys and lone towers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["clip.", "model.", "net.", "clipmodel.", "module.", "_orig_mod.", "module._orig_mod.model.clip."],
)
def test_b26_prefixes_come_off(prefix: str, folder: Path, state: State, expected: torch.Tensor) -> None:
    saved(folder, {"state_dict": {prefix + k: v for k, v in state.items()}})
    assert torch.equal(embeddings(load_backbone(str(folder))), expected)


@pytest.mark.parametrize(
    "key", ["net", "model_state", "module", "model_state_dict", "network", "weights", "my_clip"]
)
def test_b26_keys_are_found(key: str, folder: Path, state: State, expected: torch.Tensor) -> None:
    saved(folder, {"epoch": 3, key: state, "optimizer": {"exp_avg": state}})
    assert torch.equal(embeddings(load_backbone(str(folder))), expected)


def lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {
            **{"clipmodel." + k: v for k, v in state.items()},
            "ff_head.weight": torch.zeros(5, 192),
        },
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "hyper_parameters": {"lr": 1e-8},
    }


def test_b26_a_lightning_checkpoint_is_read_and_what_is_left_out_is_named(
    folder: Path, state: State, expected: torch.Tensor
) -> None:
    found = load_backbone(str(saved(folder, lightning(state), "last.ckpt")))
    assert torch.equal(embeddings(found), expected)
    assert "weights: 1 other tensors of the file are not used (ff_head.weight)" in found.notes


def test_b26_a_folder_with_a_lone_weights_file_says_what_is_missing(tmp_path: Path, state: State) -> None:
    saved(tmp_path, lightning(state), "last.ckpt")
    with pytest.raises(ConfigError, match=r"holds last\.ckpt, but .*backbone\.weights=.*last\.ckpt"):
        load_backbone(str(tmp_path))
    with pytest.raises(ConfigError, match=r"backbone\.name=ARCHITECTURE backbone\.weights=.*last\.ckpt"):
        load_backbone(str(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_b26_a_lone_tower_says_which_one_is_missing(prefix: str, folder: Path, state: State) -> None:
    image = {prefix + k: v for k, v in state.items() if k.startswith("visual.")}
    with pytest.raises(ConfigError, match=r"holds only the image tower; the text tower .* is missing"):
        load_backbone(str(saved(folder, {"state_dict": image})))
    words = {prefix + k: v for k, v in state.items() if not k.startswith("visual.")}
    with pytest.raises(ConfigError, match=r"holds only the text tower; the image tower .* is missing"):
        load_backbone(str(saved(folder, {"state_dict": words})))
    bare = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    with pytest.raises(ConfigError, match="a single tower, without the other"):
        load_backbone(str(saved(folder, bare)))


def test_b26_missing_projections_are_said(folder: Path, state: State) -> None:
    saved(folder, {k: v for k, v in state.items() if k != "visual.proj"})
    with pytest.raises(ConfigError, match="Only projections are missing"):
        load_backbone(str(folder))


def test_a_text_tower_of_its_own_is_the_same_tower(
    folder: Path, state: State, expected: torch.Tensor
) -> None:
    own = {k if k.startswith(("visual.", "logit_")) else f"text.{k}": v for k, v in state.items()}
    assert torch.equal(embeddings(load_backbone(str(saved(folder, own)))), expected)


# -- B27: logit scale and bias ----------------------------------------------------------------------------------


def test_b27_a_bias_that_the_configuration_does_not_know_is_kept(
    folder: Path, state: State, expected: torch.Tensor, tmp_path: Path
) -> None:
    saved(folder, {**state, "logit_bias": torch.tensor(-7.5)})
    found = load_backbone(str(folder))
    assert torch.equal(embeddings(found), expected)
    assert found.logit_bias is not None
    assert float(found.logit_bias.detach()) == -7.5
    assert any("logit bias" in note and "-7.5" in note for note in found.notes)
    export_backbone(found, tmp_path / "out", {})
    again = load_backbone(str(tmp_path / "out")).logit_bias
    assert again is not None
    assert float(again.detach()) == -7.5


def test_b27_a_missing_bias_starts_where_the_configuration_says(folder: Path, state: State) -> None:
    document = json.loads((folder / "open_clip_config.json").read_text())
    document["model_cfg"]["init_logit_bias"] = -10.0
    text(folder / "open_clip_config.json", json.dumps(document))
    found = load_backbone(str(saved(folder, state)))
    assert found.logit_bias is not None
    assert float(found.logit_bias.detach()) == -10
    assert "logit bias: the weights have none; it starts at -10" in found.notes


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda scale: scale.reshape(1), None),
        (lambda scale: scale.double(), None),
        (lambda scale: scale.exp(), "the factor and not its logarithm"),
        (lambda scale: None, "the weights have none; it starts at 14.29"),
    ],
    ids=["one dimension", "double", "a factor", "missing"],
)
def test_b27_a_scale_in_another_form_is_read_and_said(
    change: Callable[[torch.Tensor], torch.Tensor | None], note: str | None, folder: Path, state: State
) -> None:
    right = float(state["logit_scale"].exp())
    changed = {**state, "logit_scale": change(state["logit_scale"])}
    saved(folder, {k: v for k, v in changed.items() if v is not None})
    found = load_backbone(str(folder))
    assert float(found.logit_scale.detach()) == pytest.approx(
        1 / 0.07 if note and "none" in note else right, 1e-5
    )
    assert [note in n for n in found.notes if n.startswith("logit scale")] == ([True] if note else [])


@pytest.mark.parametrize("value", [-3.0, 5000.0])
def test_b27_a_scale_that_can_be_neither_is_refused_with_value_and_remedy(
    value: float, folder: Path, state: State
) -> None:
    saved(folder, {**state, "logit_scale": torch.tensor(value)})
    with pytest.raises(
        ConfigError, match=rf"logit_scale is {value:g}.*set the tensor 'logit_scale' to 4\.605"
    ):
        load_backbone(str(folder))


# -- S02: half precision, resized -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_s02_positions_of_any_precision_are_interpolated(
    kind: torch.dtype, folder: Path, state: State
) -> None:
    low = {k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}
    found = load_backbone(BackboneConfig(name=str(saved(folder, low)), image_size=64))
    full = {k: v.float() if v.is_floating_point() else v for k, v in low.items()}
    right = load_backbone(BackboneConfig(name=str(saved(folder, full)), image_size=64))
    assert torch.equal(embeddings(found), embeddings(right))
    assert found.pixels.size == 64


# -- S01 and files that are not what their names say ------------------------------------------------------------


def test_s01_a_file_changed_in_place_has_another_fingerprint(base: Path, tmp_path: Path) -> None:
    model = tiny(tmp_path / "m")
    before = load_backbone(str(model)).fingerprints()
    save_file(
        {k: v + 0.05 if v.dim() > 1 else v for k, v in weights(model).items()},
        model / "open_clip_model.safetensors",
    )
    after = load_backbone(str(model)).fingerprints()
    assert before["image"] != after["image"]
    assert before["text"] != after["text"]


def test_a_files_content_decides_what_it_is(folder: Path, state: State, expected: torch.Tensor) -> None:
    save_file(state, folder / "renamed.pt")
    assert torch.equal(embeddings(load_backbone(str(folder))), expected)
    (folder / "renamed.pt").unlink()
    torch.save(state, folder / "renamed.safetensors")
    assert torch.equal(embeddings(load_backbone(str(folder))), expected)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "the download failed"),
        (b"\x1f\x8b\x08" + bytes(60), "unpack it first"),
    ],
)
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "model.pt"])
def test_what_stands_in_place_of_weights_is_named(
    content: bytes, match: str, name: str, folder: Path
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=match):
        load_backbone(str(folder))


def test_truncated_files_say_that_they_end_early(base: Path, folder: Path, state: State) -> None:
    whole = (base / "open_clip_model.safetensors").read_bytes()
    (folder / "open_clip_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=rf"ends early, after {len(whole) // 2:,} of {len(whole):,} bytes"):
        load_backbone(str(folder))
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(state, folder / "x.pt")
    (folder / "x.pt").write_bytes((folder / "x.pt").read_bytes()[:-5000])
    with pytest.raises(ConfigError, match="ends early"):
        load_backbone(str(folder))


def test_a_wrong_path_is_said_with_few_names(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"shop-model-{number}").mkdir()
    with pytest.raises(ConfigError, match="does not exist") as caught:
        load_backbone(str(tmp_path / "shop-model-x"))
    said = str(caught.value).partition("Use one of these")[0]
    assert said.count("shop-model-") <= 2 + 5
    assert "ViT" not in said
    with pytest.raises(ConfigError) as caught:
        load_backbone("qqqqqqqq")
    assert str(caught.value).partition("Use one of these")[0].count("ViT") == 0


def test_a_distributed_checkpoint_says_how_it_is_joined(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"format_utils dcp_to_torch"):
        load_backbone(str(tmp_path))


def test_odd_containers_are_walked_without_end(folder: Path, state: State, expected: torch.Tensor) -> None:
    deep: Any = collections.OrderedDict(state)
    for key in ("state_dict", "model", "inner"):
        deep = {key: deep, "step": 3}
    assert torch.equal(embeddings(load_backbone(str(saved(folder, deep)))), expected)


def test_weights_beside_an_optimiser_in_a_pair_are_found(
    folder: Path, state: State, expected: torch.Tensor
) -> None:
    saved(folder, (state, {"state": {}, "param_groups": []}))
    assert torch.equal(embeddings(load_backbone(str(folder))), expected)


def test_quantised_weights_are_refused(folder: Path, state: State) -> None:
    saved(folder, {k: v.to(torch.int8) if v.dim() > 1 else v for k, v in state.items()})
    with pytest.raises(ConfigError, match="weights are quantised"):
        load_backbone(str(folder))


def test_b25_an_export_takes_the_key_too(
    folder: Path, state: State, expected: torch.Tensor, tmp_path: Path
) -> None:
    saved(folder, {"model_ema": state, "model": other(state)})
    found = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out"), "--key", "model_ema"])
    assert found.exit_code == 0, found.output
    assert torch.equal(embeddings(load_backbone(str(tmp_path / "out"))), expected)
