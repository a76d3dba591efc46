"""Backbones: folders, fingerprints, random weights, and names that are not there."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from everclip.config import BackboneConfig, MethodConfig
from everclip.contracts import Progress
from everclip.errors import ConfigError
from everclip.methods.build import build_method
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.fingerprint import tensors_hash
from everclip.models.locate import builtin_folder
from everclip.models.located import how_to_get

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture
def model(micro_folder: Path) -> Path:
    return micro_folder / "model"


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def random_weights(folder: Path, seed: int) -> Backbone:
    return load_backbone(BackboneConfig(name=str(folder), weights="random"), seed)


def test_a_folder_comes_back_bit_for_bit(model: Path, tmp_path: Path) -> None:
    one = load_backbone(str(model))
    stored = load_file(model / WEIGHTS)
    assert one.clip.state_dict().keys() == stored.keys()
    assert all(torch.equal(one.clip.state_dict()[k], v) for k, v in stored.items())
    assert not one.training
    assert {p.dtype for p in one.parameters()} == {torch.float32}

    again = tmp_path / "again"
    again.mkdir()
    for name in (CONFIG, "merges.txt.gz"):
        shutil.copy(model / name, again)
    save_file(one.clip.state_dict(), again / WEIGHTS)
    two = load_backbone(f"local-dir:{again}")
    assert one.fingerprints() == two.fingerprints()
    pixels, tokens = torch.rand(2, 3, 16, 16), one.tokenise(["a red square", ""])
    assert torch.equal(one.encode_image(pixels), two.encode_image(pixels))
    assert torch.equal(one.encode_text(tokens), two.encode_text(two.tokenise(["a red square", ""])))


def test_half_precision_weights_are_loaded_as_float32(model: Path, copy: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in load_file(model / WEIGHTS).items()}
    save_file(state, copy / WEIGHTS)
    found = load_backbone(str(copy)).clip.state_dict()
    assert all(torch.equal(found[k], v.float()) for k, v in state.items())


def test_transform_and_tokenizer_are_those_of_the_folder(model: Path) -> None:
    backbone = load_backbone(str(model))
    assert (backbone.pixels.size, backbone.pixels.mean, backbone.pixels.std) == (16, (0.5,) * 3, (0.25,) * 3)
    assert backbone.tokenise(["a", "b"]).shape == (2, 12)
    assert backbone.tokenise(["a"]).max() < 514


def test_embeddings_have_unit_norm(model: Path) -> None:
    backbone = load_backbone(str(model))
    for found in (
        backbone.encode_image(torch.rand(3, 3, 16, 16)),
        backbone.encode_text(backbone.tokenise(["x", "y"])),
    ):
        assert found.norm(dim=1).tolist() == pytest.approx([1.0] * len(found), abs=1e-6)


# -- fingerprints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "changed"),
    [
        ("visual.proj", {"image"}),
        ("visual.transformer.resblocks.1.mlp.c_fc.bias", {"image"}),
        ("text_projection", {"text"}),
        ("token_embedding.weight", {"text"}),
        ("ln_final.bias", {"text"}),
        ("logit_scale", set()),
    ],
)
def test_one_changed_weight_changes_the_fingerprint_of_its_tower_only(
    model: Path, parameter: str, changed: set[str]
) -> None:
    backbone = load_backbone(str(model))
    before = backbone.fingerprints()
    weight = backbone.clip.get_parameter(parameter).data
    # The smallest step a float can take, in one number.
    weight.view(-1)[-1] = torch.nextafter(weight.view(-1)[-1], torch.tensor(9.0))
    after = backbone.fingerprints()
    assert {tower for tower in before if before[tower] != after[tower]} == changed


def test_the_hash_knows_names_types_shapes_and_signs_of_zero() -> None:
    base = torch.zeros(2, 3)
    variants = [
        [("a", base)],
        [("b", base)],
        [("a", base.half())],
        [("a", base.reshape(3, 2))],
        [("a", -base)],
        [("a", base), ("b", base)],
        [("a", torch.zeros(()))],
        [("a", torch.zeros(0))],
    ]
    assert len({tensors_hash(v) for v in variants}) == len(variants)
    assert tensors_hash([("a", base), ("b", base + 1)]) == tensors_hash([("b", base + 1), ("a", base)])


# -- random weights -------------------------------------------------------------------------------------------


def test_random_weights_are_a_function_of_the_seed(model: Path) -> None:
    torch.manual_seed(1)
    one = random_weights(model, 3).fingerprints()
    torch.manual_seed(2)
    assert one == random_weights(model, 3).fingerprints()
    other = random_weights(model, 4).fingerprints()
    assert one["image"] != other["image"]
    assert one["text"] != other["text"]


def test_drawing_random_weights_leaves_the_callers_generator_alone(model: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    random_weights(model, 3)
    assert torch.equal(torch.rand(1), expected)


def test_random_weights_need_no_weights_file(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    assert random_weights(copy, 0).fingerprints()


# -- errors ---------------------------------------------------------------------------------------------------


def rename_key(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["visual.projection"] = state.pop("visual.proj")
    save_file(state, folder / WEIGHTS)


def drop_key(folder: Path) -> None:
    document = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({"preprocess_cfg": document["preprocess_cfg"]}))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: (f / WEIGHTS).unlink(), r"no weights at .*\.safetensors .*backbone\.weights=random"),
        (lambda f: (f / CONFIG).unlink(), rf"expected a folder with {CONFIG}"),
        (rename_key, r"does not fit .* missing \['visual\.proj'\], unexpected \['visual\.projection'\]"),
        (drop_key, r"the key 'model_cfg' is missing"),
        (lambda f: (f / WEIGHTS).write_bytes(b"damaged"), r"open_clip_model\.safetensors"),
    ],
    ids=["no weights", "no config", "other names", "half a config", "damaged weights"],
)
def test_a_folder_that_does_not_fit_says_why(
    copy: Path, damage: Callable[[Path], object], match: str
) -> None:
    damage(copy)
    with pytest.raises(ConfigError, match=match):
        load_backbone(str(copy))


def test_weights_of_another_shape_are_a_clear_error(copy: Path) -> None:
    state = load_file(copy / WEIGHTS)
    save_file({**state, "visual.proj": torch.zeros(3, 3)}, copy / WEIGHTS)
    with pytest.raises(ConfigError, match=r"(?s)does not fit .*visual\.proj"):
        load_backbone(str(copy))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("builtin:tny", r"'builtin:tny' is not known"),
        ("ViT-B-33", r"'ViT-B-33' is neither a folder nor an open_clip model\. Did you mean 'ViT-B-32'"),
        ("no/such/folder", r"'no/such/folder' is neither a folder nor an open_clip model\. \(Looked"),
        ("ViT-B-32", r"ViT-B-32 needs backbone\.weights: a file, 'random', or one of .*openai"),
    ],
)
def test_an_unknown_name_is_answered_with_what_there_is(name: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_backbone(name)


def test_builtin_folders_are_found_by_name() -> None:
    assert (builtin_folder("builtin:tiny") / CONFIG).is_file()


@pytest.fixture
def two_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for built-in models with `tiny`, and `photo` in preparation: its weights are not there."""
    for name in ("tiny", "photo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG).write_text("{}")
        (tmp_path / name / "card.json").write_text(f'{{"summary": "the {name} one"}}')
    (tmp_path / "tiny" / WEIGHTS).write_bytes(b"")
    monkeypatch.setattr("everclip.models.builtin.FOLDER", tmp_path)
    return tmp_path


def test_a_builtin_model_without_weights_is_not_offered(two_builtin: Path) -> None:
    from everclip.cli.listing import catalogue

    assert builtin_folder("builtin:tiny") == two_builtin / "tiny"
    assert catalogue()["backbones"] == [{"name": "builtin:tiny", "summary": "the tiny one"}]
    assert how_to_get("fetch").endswith("(builtin:tiny needs no files.)")
    with pytest.raises(ConfigError, match="'builtin:photo' is not known"):
        builtin_folder("builtin:photo")


def test_a_builtin_model_with_weights_is_found_listed_and_named_in_errors(two_builtin: Path) -> None:
    from everclip.cli.listing import catalogue

    (two_builtin / "photo" / WEIGHTS).write_bytes(b"")
    assert builtin_folder("builtin:photo") == two_builtin / "photo"
    assert [backbone["name"] for backbone in catalogue()["backbones"]] == ["builtin:photo", "builtin:tiny"]
    assert how_to_get("fetch").endswith("(builtin:photo and builtin:tiny need no files.)")
    with pytest.raises(ConfigError, match="Did you mean 'builtin:photo'"):
        load_backbone("builtin:foto")
    with pytest.raises(ConfigError, match="Did you mean 'builtin:photo'"):
        load_backbone("bultin-photo")


def test_a_logit_scale_at_its_bound_still_has_a_gradient(model: Path) -> None:
    backbone = load_backbone(str(model))
    with torch.no_grad():
        backbone.clip.logit_scale.fill_(9.0)
    backbone.bound_logit_scale(100.0)
    assert float(backbone.logit_scale.detach()) == pytest.approx(100.0)
    backbone.logit_scale.backward()
    assert float(backbone.clip.logit_scale.grad) > 0


@pytest.mark.parametrize(("trainable", "expected"), [(("image",), 117.3), (("image", "logit-scale"), 100.0)])
def test_a_frozen_logit_scale_stays_above_the_bound_and_a_trained_one_comes_under_it(
    model: Path, trainable: tuple[str, ...], expected: float
) -> None:
    """SigLIP's is about 117."""
    backbone = load_backbone(BackboneConfig(name=str(model)))
    method = build_method(MethodConfig(name="finetune", settings={"trainable": trainable}), backbone)
    with torch.no_grad():
        backbone.clip.logit_scale.fill_(math.log(117.3))
    method.after_step(Progress(task=0, phase="learn", repeat=0, step=0, steps=1, seed=0))
    assert float(backbone.logit_scale.detach()) == pytest.approx(expected, rel=1e-4)
