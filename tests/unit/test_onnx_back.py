"""An export to ONNX, read back: the same weights bit for bit, able to learn; changed files are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import backbone_zoo as zoo
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from everclip.cli.export import run_export
from everclip.data.table import Table
from everclip.errors import ConfigError, EverclipError
from everclip.learner import Learner
from everclip.models import export_onnx_weights
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.export_onnx_weights import write_weights
from everclip.models.limits import limits_of
from everclip.models.locate import locate
from everclip.models.onnx_layout import onnx_config, read_onnx_weights
from everclip.models.vocabulary import Vocabulary
from micro import of_classes

onnx = pytest.importorskip("onnx")


def same(one: Backbone, two: Backbone) -> bool:
    a, b = one.clip.state_dict(), two.clip.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def graph(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a graph that only holds tensors."""
    held = [onnx.numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in tensors.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "tower", [], [], initializer=held)), path)


@pytest.fixture(scope="module")
def exported(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(load_backbone(str(micro_folder / "model")), tmp_path_factory.mktemp("exported") / "onnx")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """What an export writes for the reader, with graphs that hold weights under other names, some transposed."""
    return Path(shutil.copytree(exported, tmp_path / "onnx"))


def written(backbone: Backbone, folder: Path) -> Path:
    folder.mkdir()
    state = {k: v.numpy() for k, v in backbone.clip.state_dict().items() if v.ndim}
    for file, image in (("image.onnx", True), ("text.onnx", False)):
        part = {k: v for k, v in state.items() if k.startswith("visual.") == image}
        turned = {
            f"MatMul_{k}": v.T for k, v in part.items() if k.endswith(("c_fc.weight", "in_proj_weight"))
        }
        kept = {
            f"clip.{k}": v for k, v in part.items() if f"MatMul_{k}" not in turned and "class_emb" not in k
        }
        graph(folder / file, kept | turned)
    write_weights(backbone, folder)
    return folder


def change(folder: Path, **changed: Any) -> None:
    path = folder / "onnx_weights.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


# -- the same model ------------------------------------------------------------------------------------------------


def test_the_weights_are_the_same_and_none_is_stored_twice(folder: Path, micro_folder: Path) -> None:
    source, back = load_backbone(str(micro_folder / "model")), load_backbone(str(folder))
    assert same(source, back)
    assert back.fingerprints() == source.fingerprints()
    assert back.layout is not None
    assert source.layout is not None
    assert (back.layout.model_cfg, back.layout.preprocess_cfg) == (
        source.layout.model_cfg,
        source.layout.preprocess_cfg,
    )
    assert load_file(folder / "onnx_rest.safetensors").keys() == {"logit_scale", "visual.class_embedding"}
    places = json.loads((folder / "onnx_weights.json").read_text())["tensors"]
    assert sum(place.get("transposed", False) for place in places.values()) == 8
    assert limits_of(str(folder)).side == 16


def test_a_vocabulary_that_has_grown_comes_back(micro_folder: Path, tmp_path: Path) -> None:
    source = load_backbone(str(micro_folder / "model"))
    source.grow_vocabulary(Vocabulary("one", ("ma", "mar</w>"), (("m", "a"), ("ma", "r</w>"))))
    source.grow_vocabulary(Vocabulary("two", ("zu",), (("z", "u"),)), torch.randn(1, 32))
    back = load_backbone(str(written(source, tmp_path / "onnx")))
    assert same(source, back)
    assert back.fingerprints() == source.fingerprints()  # these cover the tokenizer's tokens and merges
    assert torch.equal(back.tokenise(["mar zu zum"]), source.tokenise(["mar zu zum"]))
    count = limits_of(str(tmp_path / "onnx")).lengths
    assert count(["mar"]) == [3]


def test_other_weights_for_the_configuration_of_an_export(folder: Path, micro_folder: Path) -> None:
    drawn = load_backbone({"name": str(folder), "weights": "random"})
    named = load_backbone(
        {"name": str(folder), "weights": str(micro_folder / "model/open_clip_model.safetensors")}
    )
    back = load_backbone(str(folder))
    assert not same(drawn, back)
    assert same(named, back)


@pytest.mark.slow
def test_it_learns(folder: Path, micro_folder: Path) -> None:
    learner = Learner.create(str(folder), "finetune", {"steps": 2, "batch_size": 4})
    data = Table(pq.read_table(micro_folder / "data.parquet"))
    before = learner.method.backbone.fingerprints()
    learner.learn(of_classes(data, 0, 0, 1))
    assert learner.method.backbone.fingerprints() != before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["micro", *zoo.MODELS])
def test_a_real_export_comes_back_bit_for_bit(name: str, micro_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    source = micro_folder / "model" if name == "micro" else zoo.write(tmp_path / "from", zoo.MODELS[name])
    run_export(str(source), tmp_path / "onnx", form="onnx")
    back = load_backbone(str(tmp_path / "onnx"))
    assert same(back, load_backbone(str(source)))
    run_export(str(tmp_path / "onnx"), tmp_path / "again")
    assert load_backbone(str(tmp_path / "again")).fingerprints() == back.fingerprints()
    with pytest.raises(ConfigError, match="exists already; --force replaces it"):
        run_export(str(source), tmp_path / "onnx")
    run_export(str(source), tmp_path / "onnx", force=True)
    assert not (tmp_path / "onnx/onnx_weights.json").exists()


# -- changed and missing files --------------------------------------------------------------------------------------


def test_a_changed_weight_is_named(folder: Path) -> None:
    model = onnx.load(folder / "text.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "clip.positional_embedding")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[3, 1] += 1e-3
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folder / "text.onnx")
    with pytest.raises(
        ConfigError, match=r"text\.onnx: the weights 'positional_embedding'.*not those that were exp"
    ):
        load_backbone(str(folder))


def test_a_changed_rest_is_named(folder: Path) -> None:
    rest = load_file(folder / "onnx_rest.safetensors")
    save_file({**rest, "logit_scale": rest["logit_scale"] + 1}, folder / "onnx_rest.safetensors")
    with pytest.raises(ConfigError, match=r"onnx_rest\.safetensors: the weights 'logit_scale'"):
        load_backbone(str(folder))


def test_a_graph_that_another_program_rewrote_is_named(folder: Path) -> None:
    model = onnx.load(folder / "image.onnx")
    for tensor in model.graph.initializer:
        tensor.name += "_quantised"
    onnx.save(model, folder / "image.onnx")
    with pytest.raises(ConfigError, match=r"image\.onnx does not hold 'clip\..*the file was changed"):
        load_backbone(str(folder))


def test_data_outside_the_file_and_other_types_are_refused(folder: Path) -> None:
    model = onnx.load(folder / "image.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "clip.visual.proj")
    outside = onnx.TensorProto()
    outside.CopyFrom(tensor)
    outside.ClearField("raw_data")
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="/etc/hostname")
    half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
    short = onnx.TensorProto()
    short.CopyFrom(tensor)
    short.raw_data = short.raw_data[:-4]
    for changed, found in ((outside, "stored outside"), (half, "type FLOAT16"), (short, "is damaged")):
        tensor.CopyFrom(changed)
        (folder / "image.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ConfigError, match=rf"image\.onnx: 'clip\.visual\.proj'.*{found}"):
            load_backbone(str(folder))


@pytest.mark.parametrize("cut", [0, 50, 2000])
def test_a_file_that_ends_early_is_named(cut: int, folder: Path) -> None:
    path = folder / "text.onnx"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match=r"text\.onnx (is damaged|does not hold)"):
        load_backbone(str(folder))


def test_a_graph_alone_is_no_model(folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"name the folder of an export to ONNX, backbone\.name={folder}$"):
        load_backbone(str(folder / "image.onnx"))


def test_missing_files_are_named(folder: Path) -> None:
    for name in ("text.onnx", "onnx_rest.safetensors"):
        (folder / name).rename(folder / "aside")
        with pytest.raises(ConfigError, match=rf"names {name}, which is not beside it"):
            load_backbone(str(folder))
        (folder / "aside").rename(folder / name)
    (folder / "onnx_weights.json").unlink()
    with pytest.raises(ConfigError, match=r"does not say where its weights are.*export the model again"):
        load_backbone(str(folder))


def test_a_damaged_list_of_places_is_named(folder: Path) -> None:
    document = json.loads((folder / "onnx_weights.json").read_text())
    place = document["tensors"]["logit_scale"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"format": 2}, "format: expected 1, found 2"),
        ({"tensors": []}, "tensors: expected the place"),
        (
            {"tensors": {"logit_scale": {**place, "file": "../other.onnx"}}},
            r"logit_scale\.file: expected image",
        ),
        ({"tensors": {"logit_scale": {**place, "sha256": "x"}}}, r"logit_scale\.sha256"),
        ({"tensors": {"logit_scale": place}}, "does not fit its configuration: missing"),
        ({"model_cfg": {}}, r"model_cfg\.embed_dim' is missing"),
        ({"preprocess_cfg": None}, "preprocess_cfg: expected a mapping"),
        ({"vocabulary": {"name": "x"}}, "vocabulary: expected name"),
    ]
    for changed, found in wrong:
        change(folder, **{**document, **changed})
        with pytest.raises(ConfigError, match=found):
            load_backbone(str(folder))


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_broken_bytes_are_refused_or_change_no_weight(count: int, folder: Path, micro_folder: Path) -> None:
    sound = load_backbone(str(micro_folder / "model")).clip.state_dict()
    draw = np.random.default_rng(count)
    refused = 0
    names = ("image.onnx", "text.onnx", "onnx_rest.safetensors", "onnx_weights.json")
    contents = {name: (folder / name).read_bytes() for name in names}
    for number in range(count):
        name = names[number % 4]
        data = bytearray(contents[name])
        # Structure is at the ends of these files: wounds there hit more than numbers.
        near = draw.integers(0, [len(data), min(len(data), 400)][number % 2], draw.integers(1, 4))
        for place in near:
            data[place if number % 3 else -place - 1] = draw.integers(0, 256)
        (folder / name).write_bytes(bytes(data))
        try:
            onnx_config(folder)
            state = read_onnx_weights(folder / "onnx_weights.json", 1_000_000)
        except ConfigError:
            refused += 1
        else:
            assert all(torch.equal(state[k], sound[k]) for k in state if k in sound)
        (folder / name).write_bytes(contents[name])
    assert count / 2 < refused


def test_a_large_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everclip.models.weights.TIMES", 0)
    monkeypatch.setattr("everclip.models.weights.EXTRA", 1000)
    with pytest.raises(ConfigError, match=r"image\.onnx holds 0 MB; the limit for this model"):
        load_backbone(str(folder))


def test_without_the_package_onnx(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"needs the package onnx: pip install 'everclip\[export\]'"):
        load_backbone(str(folder))


def test_the_rest_is_not_taken_for_the_model(folder: Path, micro_folder: Path) -> None:
    shutil.copyfile(micro_folder / "model/open_clip_config.json", folder / "open_clip_config.json")
    with pytest.raises(ConfigError, match=r"image\.onnx, which PyTorch does not read"):
        locate(load_backbone(str(micro_folder / "model")).config.model_copy(update={"name": str(folder)}))


def test_an_export_that_is_not_the_model_is_not_written(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export_onnx_weights.read_onnx_weights

    def damaged(*given: Any) -> dict[str, torch.Tensor]:
        state = real(*given)
        state["visual.proj"][0, 0] += 1e-6
        return state

    monkeypatch.setattr(export_onnx_weights, "read_onnx_weights", damaged)
    with pytest.raises(EverclipError, match=r"read back, is not the model: visual\.proj differ"):
        written(load_backbone(str(micro_folder / "model")), tmp_path / "onnx")
