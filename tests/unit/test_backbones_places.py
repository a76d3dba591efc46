"""Where backbones are found without a network: hub cache, open_clip's tags, files, folders; and what errors say."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import backbone_zoo as zoo
import open_clip
import pytest
import torch
from open_clip import factory
from safetensors.torch import load_file, save_file

from everclip.config import BackboneConfig
from everclip.errors import ConfigError
from everclip.models import hub
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.layout import WEIGHT_NAMES, find_weights

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
TOKENS = torch.tensor([[49406, 320, 736, 49407, *[0] * 12], [49406, 1, 2, 3, 49407, *[0] * 11]])


@pytest.fixture(autouse=True)
def _no_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.write(tmp_path_factory.mktemp("zoo") / "vit", zoo.MODELS["vit"])


def text_of(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.encode_text(TOKENS)


def into_hub(
    source: Path, cache: Path, repository: str, commit: str = "0123456789abcdef", branch: str = "main"
) -> Path:
    """Write a repository as the hub's library does: blobs, links in snapshots, a ref."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for file in source.iterdir():
        blob = folder / "blobs" / f"{commit[:4]}-{file.name}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    if branch:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / branch).write_text(commit)
    return snapshot


# -- the hub's cache --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "below"), [("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")]
)
def test_a_hub_model_is_found_in_the_cache_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, below: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    into_hub(model, tmp_path / "cache" / below, "org/clip")
    backbone = load_backbone("hf-hub:org/clip")
    assert torch.equal(text_of(backbone), zoo.reference(f"local-dir:{model}", TOKENS)[1])
    assert backbone.notes == [
        "revision: main of org/clip is 0123456789abcdef; it is not pinned (add @0123456789ab to the name)"
    ]


def test_a_revision_is_pinned(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    other = zoo.write(tmp_path / "other", zoo.MODELS["vit"], seed=5)
    into_hub(model, tmp_path, "org/clip", "aaaaaaaaaa11")
    into_hub(other, tmp_path, "org/clip", "bbbbbbbbbb22", "v2")
    first, second = text_of(load_backbone(str(model))), text_of(load_backbone(str(other)))
    assert not torch.equal(first, second)
    for name, expected in {
        "hf-hub:org/clip": first,
        "hf-hub:org/clip@main": first,
        "hf-hub:org/clip@v2": second,
        "hf-hub:org/clip@bbbbbbbbbb22": second,
        "hf-hub:org/clip@bbbbbbb": second,
    }.items():
        assert torch.equal(text_of(load_backbone(name)), expected), name
    assert load_backbone("hf-hub:org/clip@bbbbbbbbbb22").notes == []
    with pytest.raises(ConfigError, match=r"no snapshot of v3 \(it has aaaaaaaaaa11, bbbbbbbbbb22\)"):
        load_backbone("hf-hub:org/clip@v3")


def test_a_cache_without_a_branch_says_what_was_taken(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    into_hub(model, tmp_path, "org/clip", branch="")
    assert "its only snapshot 0123456789abcdef is used" in load_backbone("hf-hub:org/clip").notes[0]


def test_what_is_not_in_the_cache_is_said_with_the_three_ways_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        load_backbone("hf-hub:org/clip@v2")
    message = str(error.value)
    assert f"there is no folder {tmp_path / 'models--org--clip'}" in message
    for way in (
        "backbone.weights=PATH",
        "backbone.name=FOLDER",
        "`hf download org/clip --revision v2 --include",
    ):
        assert way in message
    snapshot = into_hub(model, tmp_path, "org/half")
    (snapshot / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=r"(?s)no weights at .*Use one of these.*hf download org/half"):
        load_backbone("hf-hub:org/half")
    (snapshot / CONFIG).unlink()
    with pytest.raises(ConfigError, match=rf"has no {CONFIG} \(it has nothing\)"):
        load_backbone("hf-hub:org/half")


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:../../etc", "hf-hub:a/b/c", "hf-hub:org/clip@", "hf-hub:a b"]
)
def test_names_that_are_no_repository_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected hf-hub:ORG/NAME"):
        load_backbone(name)


def test_a_revision_cannot_leave_the_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    into_hub(model, tmp_path, "org/clip")
    assert (
        hub.find_snapshot("org/clip", "../../../etc/passwd")
        == "'../../../etc/passwd' is not a valid name of a revision"
    )


def test_nothing_reaches_for_the_network(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    import socket

    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    into_hub(model, tmp_path, "org/clip")
    load_backbone("hf-hub:org/clip")
    for name, weights in (("hf-hub:org/none", None), ("ViT-B-32", "laion2b_s34b_b79k"), ("RN50", "openai")):
        with pytest.raises(ConfigError, match="Use one of these"):
            load_backbone(BackboneConfig(name=name, weights=weights))


# -- architectures with a tag or a file -------------------------------------------------------------------------


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Give open_clip a small architecture `Small` (and `Small-quickgelu`) with tags; returns the tags."""
    plain = {k: v for k, v in zoo.MODELS["vit"].items() if k != "quick_gelu"}
    models = {"Small": plain, "Small-quickgelu": {**plain, "quick_gelu": True}}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS, **models})
    pictures = dict(zoo.PREPROCESS)
    tags = {
        "plain": {"url": "", "hf_hub": "org/plain/", **pictures},
        "quick": {"url": "", "hf_hub": "org/quick/", "quick_gelu": True, **pictures},
        "file": {
            "url": "https://x/small-arch-file-12345678.pt",
            "hf_hub": "",
            "quick_gelu": True,
            **pictures,
        },
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Small", tags)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Small-quickgelu", tags)
    return tags


def small(name: str, weights: str | Path, **settings: Any) -> Backbone:
    return load_backbone(BackboneConfig(name=name, weights=str(weights), **settings))


def test_a_tag_is_found_in_the_hubs_cache_and_equals_open_clips(
    architecture: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = into_hub(model, tmp_path, "org/quick")
    (snapshot / CONFIG).unlink()
    backbone = small("Small-quickgelu", "quick")
    tokens = open_clip.tokenize(["red", "two dogs"], 16)
    with torch.no_grad():
        ours = backbone.encode_image(torch.stack([backbone.preprocess(p) for p in zoo.pictures()]))
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: str(snapshot / WEIGHTS))
    theirs = zoo.reference("Small-quickgelu", tokens, pretrained="quick")
    assert torch.equal(ours, theirs[0])
    assert torch.equal(backbone.encode_text(tokens), theirs[1])


def test_a_tag_that_is_nowhere_says_every_place_and_the_ways_on(
    architecture: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        small("Small", "plain")
    assert "Small with weights 'plain' is not on this machine" in str(error.value)
    assert f"{tmp_path / 'home/.cache/huggingface/hub'}: there is no folder" in str(error.value)
    assert "hf download org/plain" in str(error.value)
    with pytest.raises(ConfigError, match=r"no such file .* and no such tag\. Did you mean 'plain'"):
        small("Small", "plian")
    architecture["plain"]["url"] = "https://x/y/small.pt"
    with pytest.raises(ConfigError, match=r"open_clip's own cache: .*/\.cache/clip/small\.pt"):
        small("Small", "plain")


def test_a_download_of_open_clip_is_checked_against_its_hash(
    architecture: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    import hashlib

    folder = tmp_path / "home/.cache/clip"
    folder.mkdir(parents=True)
    torch.save({"state_dict": load_file(model / WEIGHTS)}, folder / "new.pt")
    digest = hashlib.sha256((folder / "new.pt").read_bytes()).hexdigest()[:8]
    name = f"small-quickgelu-{digest}.pt"
    (folder / "new.pt").rename(folder / name)
    architecture["plain"] |= {"url": f"https://github.com/mlfoundations/{name}"}
    assert torch.equal(text_of(small("Small", "plain")), text_of(small("Small", folder / name)))
    (folder / name).write_bytes(b"half")
    with pytest.raises(ConfigError, match=rf"damaged: its SHA-256 begins with .*, expected {digest}"):
        small("Small", "plain")


def test_a_file_of_weights_with_the_architectures_name(
    architecture: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(model / WEIGHTS, tmp_path / "mine.safetensors"))
    backbone = small("Small-quickgelu", file)
    theirs = zoo.reference("Small-quickgelu", TOKENS, pretrained=str(file))
    assert torch.equal(text_of(backbone), theirs[1])
    assert any("activation: taken from Small-quickgelu" in note for note in backbone.notes)
    assert any("preprocessing: the weights do not state mean" in note for note in backbone.notes)
    set_by_hand = small("Small-quickgelu", file, preprocess=zoo.PREPROCESS)
    assert not any("preprocessing" in note for note in set_by_hand.notes)
    assert set_by_hand.pixels.mean == tuple(zoo.PREPROCESS["mean"])


def test_random_weights_of_an_architecture_need_no_file(architecture: dict[str, Any]) -> None:
    one, two = (load_backbone(BackboneConfig(name="Small", weights="random"), seed) for seed in (0, 1))
    assert one.fingerprints() != two.fingerprints()
    again = load_backbone(BackboneConfig(name="Small", weights="random"), 0)
    assert one.fingerprints() == again.fingerprints()


def test_a_file_as_the_name_needs_a_configuration_beside_it(model: Path, tmp_path: Path) -> None:
    assert torch.equal(text_of(load_backbone(str(model / WEIGHTS))), text_of(load_backbone(str(model))))
    alone = Path(shutil.copy(model / WEIGHTS, tmp_path / "alone.safetensors"))
    with pytest.raises(
        ConfigError, match=r"backbone\.name=ARCHITECTURE backbone\.weights=.*alone\.safetensors"
    ):
        load_backbone(str(alone))
    with pytest.raises(ConfigError, match="no such file"):
        load_backbone(str(tmp_path / "none.pt"))


# -- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [WEIGHTS, "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin", "epoch_12.pt"]
)
def test_the_weights_of_a_folder_may_have_several_names(name: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(model / CONFIG, folder)
    state = load_file(model / WEIGHTS)
    if name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    assert torch.equal(text_of(load_backbone(str(folder))), text_of(load_backbone(str(model))))


def test_safetensors_come_first_and_a_named_file_before_all(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "copy"))
    other = zoo.write(tmp_path / "other", zoo.MODELS["vit"], seed=7)
    torch.save(load_file(other / WEIGHTS), folder / "open_clip_pytorch_model.bin")
    assert torch.equal(text_of(load_backbone(str(folder))), text_of(load_backbone(str(model))))
    named = load_backbone(BackboneConfig(name=str(folder), weights="open_clip_pytorch_model.bin"))
    assert torch.equal(text_of(named), text_of(load_backbone(str(other))))


def test_the_order_of_names_is_open_clips_own(tmp_path: Path) -> None:
    whole = [name for name in WEIGHT_NAMES if not name.endswith(".json")]
    for name in whole:
        (tmp_path / name).touch()
    for name in whole:  # the first one that is left
        assert find_weights(tmp_path, None).name == name
        assert Path(str(factory._find_checkpoint_in_dir(tmp_path))).name == name
        (tmp_path / name).unlink()


def test_variables_and_home_are_expanded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS", str(model.parent))
    assert load_backbone(f"${{MODELS}}/{model.name}").name == "${MODELS}/vit"
    shutil.copytree(model, tmp_path / "home/vit")
    load_backbone("~/vit")


def test_folders_of_another_kind_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"make a backbone from it with everclip export .*run FOLDER"):
        load_backbone(str(tmp_path / "run"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="transformers' layout, but it is not a whole CLIPModel"):
        load_backbone(str(tmp_path))


def test_open_clips_own_log_lines_do_not_appear(
    model: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with caplog.at_level(logging.DEBUG):
        load_backbone(str(model))
        load_backbone(BackboneConfig(name=str(model), image_size=40))
    assert caplog.records == []
    assert not [w for w in recwarn if "everclip" not in str(w.filename)]
    assert logging.root.manager.disable == logging.NOTSET


def test_a_damaged_configuration_names_the_key(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "copy"))
    document = json.loads((folder / CONFIG).read_text())
    for change, match in (
        ({"model_cfg": {**document["model_cfg"], "text_cfg": 3}}, r"text_cfg: expected a mapping, found 3"),
        ({"model_cfg": {"embed_dim": 4}}, r"'model_cfg\.vision_cfg' is missing"),
        (
            {"model_cfg": {**document["model_cfg"], "speed": 9}},
            r"open_clip cannot build this model_cfg .*speed",
        ),
        ({**document, "preprocess_cfg": {"maen": [1, 1, 1]}}, r"unknown key 'maen'\. Did you mean 'mean'"),
        (
            {**document, "preprocess_cfg": {"mean": [122, 116, 104]}},
            r"mean: expected three numbers in \[0, 1\]",
        ),
        (
            {**document, "preprocess_cfg": {"interpolation": "cubic"}},
            r"interpolation: expected bicubic or bilinear",
        ),
    ):
        (folder / CONFIG).write_text(json.dumps(change))
        with pytest.raises(ConfigError, match=match):
            load_backbone(str(folder))
    (folder / CONFIG).write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_backbone(str(folder))
