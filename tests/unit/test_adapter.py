"""A LoRA in PEFT's layout, merged into its start model: PEFT's own numbers, refusals of what is not read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export_layouts import embeddings, lora
from typer.testing import CliRunner

from everclip.cli.export import run_export
from everclip.cli.main import app
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.models.adapter_config import read_adapter_config
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.export_transformers import renamed

QUERY = "text_model.encoder.layers.0.self_attn.q_proj"
FC = "vision_model.encoder.layers.1.mlp.fc1"
SETTINGS: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none"}


def write(folder: Path, layers: dict[str, tuple[int, int]], rank: int = 2, **settings: Any) -> Path:
    """Write an adapter with random factors; `layers` maps names to (rows, columns) of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (rows, columns) in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, columns, generator=draw)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=draw)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    return folder


def load(micro_folder: Path, adapter: Path, **more: Any) -> Backbone:
    return load_backbone({"name": str(micro_folder / "model"), "adapter": str(adapter), **more})


def moved(micro_folder: Path, merged: Backbone) -> dict[str, torch.Tensor]:
    """Return the changes of weights under transformers' names, without those that are zero."""
    before = renamed(load_backbone(str(micro_folder / "model")).clip.state_dict())
    after = renamed(merged.clip.state_dict())
    return {k: after[k] - before[k] for k in before if not torch.equal(after[k], before[k])}


# -- what is merged -------------------------------------------------------------------------------------------------


def test_each_update_is_in_its_own_layer(micro_folder: Path, tmp_path: Path) -> None:
    layers = {QUERY: (32, 32), FC: (64, 32), "visual_projection": (32, 32), "text_projection": (32, 32)}
    folder = write(tmp_path / "lora", layers)
    merged = load(micro_folder, folder)
    held = load_file(folder / "adapter_model.safetensors")
    changes = moved(micro_folder, merged)
    assert changes.keys() == {f"{name}.weight" for name in layers}
    for name in layers:
        down, up = (held[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
        assert (changes[f"{name}.weight"] - up @ down * 3).abs().max() <= 1e-5
    assert f"adapter: {folder} merged (LoRA of rank 2 in 4 layers)" in merged.notes[-1]
    assert "nothing says whether these weights are that model's" in merged.notes[-1]


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"lora_alpha": 1.5}, 0.75),
        ({"alpha_pattern": {"q_proj": 4}}, 2),
        ({"alpha_pattern": {"k_proj": 4, r"layers\.\d+\.self_attn\.q_proj": 8}}, 4),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 4}}, 3),
        ({"r": 7, "rank_pattern": {f"^{QUERY}": 2}}, 3),
    ],
)
def test_scalings_and_patterns(settings: dict[str, Any], factor: float, tmp_path: Path) -> None:
    config = read_adapter_config(write(tmp_path, {}, **settings))
    assert config.rank_of(QUERY) == 2
    assert config.scaling(QUERY) == pytest.approx(factor)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["k_proj", "fc2"], "use_rslora": True, "rank_pattern": {"fc2": 3}},
        {
            "target_modules": ["visual_projection", "out_proj"],
            "alpha_pattern": {"layers.0.self_attn.out_proj": 9},
        },
        {"target_modules": ["patch_embedding", "token_embedding", "position_embedding"]},
    ],
)
def test_peft_itself_merges_the_same(settings: dict[str, Any], micro_folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    run_export(str(micro_folder / "model"), tmp_path / "start", form="transformers")
    start = transformers.CLIPModel.from_pretrained(tmp_path / "start")
    model = peft.get_peft_model(start, peft.LoraConfig(r=2, lora_alpha=5, **settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "lora")
    theirs = model.merge_and_unload().state_dict()
    ours = renamed(load(micro_folder, tmp_path / "lora").clip.state_dict())
    theirs = {k: v for k, v in theirs.items() if not k.endswith("position_ids")}
    assert theirs.keys() == ours.keys()
    assert len(moved(micro_folder, load(micro_folder, tmp_path / "lora"))) >= 3
    for name, expected in theirs.items():
        assert (ours[name] - expected).abs().max() <= 1e-6, name


# -- what everclip writes, read back --------------------------------------------------------------------------------


def another(micro_folder: Path, folder: Path) -> Path:
    """Copy the model with one weight changed."""
    shutil.copytree(micro_folder / "model", folder)
    state = load_file(folder / "open_clip_model.safetensors")
    state["ln_final.bias"][0] += 1
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def test_an_adapter_comes_back_with_its_logit_scale(micro_folder: Path, tmp_path: Path) -> None:
    learner = Learner.load(lora(micro_folder, tmp_path / "learner"))
    with torch.no_grad():
        learner.method.backbone.clip.logit_scale.fill_(3.1415)
    learner.save(tmp_path / "scaled")
    exported, source, _ = run_export(str(tmp_path / "scaled"), tmp_path / "lora", adapter_only=True)
    assert exported.parity.logit_scale == 0
    back = load(micro_folder, tmp_path / "lora")
    assert torch.equal(back.logit_scale, source.logit_scale)
    for a, b in zip(embeddings(back), embeddings(source), strict=True):
        assert (a - b).abs().max() <= 1e-6
    assert "and the logit scale that it learned" in back.notes[-1]
    assert "nothing says" not in back.notes[-1]
    other = another(micro_folder, tmp_path / "other")
    with pytest.raises(
        ConfigError, match=r"changes the start model .*/model \(towers.*; backbone\.name=.*/other is"
    ):
        load_backbone({"name": str(other), "adapter": str(tmp_path / "lora")})
    with pytest.raises(
        ConfigError, match=rf"backbone\.name={micro_folder}/model backbone\.adapter={tmp_path}/lora"
    ):
        load_backbone(str(tmp_path / "lora"))


def test_commands_take_an_adapter(micro_folder: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "lora", {QUERY: (32, 32)})
    exported, backbone, card = run_export(
        str(micro_folder / "model"), tmp_path / "whole", adapter=str(folder)
    )
    assert exported.parity.texts == 0
    assert card["source"]["adapter"] == str(folder)
    assert load_backbone(str(tmp_path / "whole")).fingerprints() == backbone.fingerprints()
    done = CliRunner().invoke(
        app, ["export", "builtin:tiny", str(tmp_path / "no"), "--adapter", str(tmp_path)]
    )
    assert "expected a folder with adapter_config.json" in str(done.exception)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"peft_type": "LOHA"}, "peft_type: only LORA is read, found 'LOHA'"),
        ({"use_dora": True}, "use_dora=True is not read"),
        ({"bias": "all"}, "bias=all is not read"),
        ({"modules_to_save": ["visual_projection"]}, "modules_to_save="),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True is not read"),
        ({"something_new": {"x": 1}}, "something_new="),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights='pissa' also changes the start model",
        ),
        ({"r": 0}, "r: expected a positive whole number, found 0"),
        ({"lora_alpha": "6"}, "lora_alpha: expected a number"),
        ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern: expected numbers"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "no simple regular expression"),
        ({"alpha_pattern": {"(": 1}}, "no simple regular expression"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(
    settings: dict[str, Any], found: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"backbone\.adapter: .*{found}"):
        read_adapter_config(write(tmp_path, {}, **settings))


def damaged(change: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = next(iter(tensors))
    if change == "nan":
        tensors[first][0, 0] = float("nan")
    elif change == "integers":
        tensors[first] = tensors[first].int()
    elif change == "one factor":
        del tensors[first]
    elif change == "shape":
        tensors[first] = tensors[first][:, :-1].contiguous()
    else:
        tensors[change] = torch.zeros(2, 2)
    return tensors


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("nan", r"q_proj\.lora_A\.weight' holds NaN"),
        ("integers", r"q_proj\.lora_A\.weight' holds numbers of torch\.int32"),
        ("one factor", "q_proj: expected both lora_A and lora_B"),
        ("shape", r"q_proj: A \(2, 31\) and B \(32, 2\) do not fit"),
        (f"base_model.model.{QUERY}.lora_magnitude_vector", "lora_magnitude_vector' is no LoRA of a layer"),
        (f"base_model.model.{QUERY}.bias", "bias' is no LoRA of a layer"),
        (f"{QUERY}.lora_A.weight", "is no LoRA of a layer"),
    ],
)
def test_wrong_tensors_are_named(change: str, found: str, micro_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, {QUERY: (32, 32)}) / "adapter_model.safetensors"
    save_file(damaged(change, load_file(path)), path)
    with pytest.raises(ConfigError, match=rf"adapter_model\.safetensors: .*{found}"):
        load(micro_folder, tmp_path)


@pytest.mark.parametrize(
    "layer", ["vision_model.encoder.layers.9.mlp.fc1", "text_model.final_layer_norm", "encoder.q_proj"]
)
def test_layers_that_the_model_lacks_are_named(layer: str, micro_folder: Path, tmp_path: Path) -> None:
    write(tmp_path, {layer: (32, 32)})
    with pytest.raises(ConfigError, match=rf"the model has no layer {layer}"):
        load(micro_folder, tmp_path)


def test_missing_and_foreign_files_are_named(micro_folder: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "lora", {QUERY: (32, 32)})
    with pytest.raises(ConfigError, match=rf"Name the folder: backbone\.adapter={folder}"):
        load(micro_folder, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"leave out backbone\.weights=random"):
        load(micro_folder, folder, weights="random")
    (folder / "card.json").write_text('{"base_towers": {}, "log_logit_scale": "x"}')
    with pytest.raises(ConfigError, match="changes the start model None"):
        load(micro_folder, folder)
    towers = load_backbone(str(micro_folder / "model")).fingerprints()
    (folder / "card.json").write_text(json.dumps({"base_towers": towers, "log_logit_scale": "x"}))
    with pytest.raises(ConfigError, match="log_logit_scale: expected a number, found 'x'"):
        load(micro_folder, folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"is missing; adapter_model\.bin is not read"):
        load(micro_folder, folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "openai/clip"}')
    with pytest.raises(ConfigError, match=r"START backbone\.adapter=.*its configuration says 'openai/clip'"):
        load_backbone(str(folder))
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        load(micro_folder, folder)
