"""Several checkpoints in one folder: all are named, in the order of their numbers, and none is taken silently."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from build import text, tiny

from everclip.config import BackboneConfig, validated
from everclip.errors import ConfigError
from everclip.models.locate import locate


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tiny")) / "open_clip_model.safetensors"


def write(weights: Path, folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(weights, folder / name)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        locate(validated(BackboneConfig, {"name": str(folder)}, "backbone"))
    return str(error.value)


@pytest.mark.parametrize(
    ("names", "listed", "chosen"),
    [
        (
            ("epoch_1.pt", "epoch_10.pt", "epoch_2.pt"),
            "epoch_1.pt, epoch_2.pt, epoch_10.pt",
            "epoch_10.pt has the highest",
        ),
        (
            ("step200.safetensors", "step1000.safetensors"),
            "step200.safetensors, step1000",
            "step1000.safetensors has",
        ),
        (("last.pt", "best.pt", "epoch_1.pt"), "best.pt, epoch_1.pt, last.pt", "best.pt is called the best"),
        (("last.ckpt", "mine.ckpt"), "last.ckpt, mine.ckpt", "last.ckpt is called the last"),
    ],
)
def test_all_are_named_in_order_and_one_is_proposed_with_its_reason(
    tmp_path: Path, weights: Path, names: tuple[str, ...], listed: str, chosen: str
) -> None:
    said = refused(write(weights, tmp_path / "run", *names))
    assert f"{len(names)} checkpoints ({listed}" in said
    assert chosen in said
    assert "backbone.name=ARCHITECTURE backbone.weights=" in said


def test_a_folder_of_open_clips_trainer_says_its_architecture(tmp_path: Path, weights: Path) -> None:
    write(weights, tmp_path / "checkpoints", "epoch_9.pt", "epoch_10.pt", "epoch_latest.pt")
    text(tmp_path / "params.txt", "lr: 0.001\nmodel: ViT-B-32\nname: mine\n")
    for folder in (tmp_path, tmp_path / "checkpoints"):
        said = refused(folder)
        assert "params.txt says ViT-B-32" in said
        assert f"backbone.name=ViT-B-32 backbone.weights={tmp_path}/checkpoints/epoch_10.pt" in said


def test_beside_a_configuration_none_is_taken_silently(tmp_path: Path, weights: Path) -> None:
    folder = tiny(tmp_path / "model")
    (folder / "open_clip_model.safetensors").rename(folder / "epoch_1.safetensors")
    assert (
        locate(validated(BackboneConfig, {"name": str(folder)}, "backbone")).weights
        == folder / "epoch_1.safetensors"
    )
    write(weights, folder, "epoch_2.safetensors", "epoch_10.safetensors")
    said = refused(folder)
    assert "3 checkpoints (epoch_1.safetensors, epoch_2.safetensors, epoch_10.safetensors)" in said
    assert "epoch_10.safetensors has the highest number: backbone.weights=epoch_10.safetensors" in said
    named = {"name": str(folder), "weights": "epoch_10.safetensors"}
    assert locate(validated(BackboneConfig, named, "backbone")).weights == folder / "epoch_10.safetensors"


def test_what_lies_beside_the_usual_file_is_said(tmp_path: Path, weights: Path) -> None:
    folder = tiny(tmp_path / "model")
    backbone = validated(BackboneConfig, {"name": str(folder)}, "backbone")
    assert locate(backbone).notes == ()
    write(weights, folder, "epoch_3.pt", "model.safetensors")
    assert locate(backbone).notes == (
        "open_clip_model.safetensors is read, not the checkpoints beside it: epoch_3.pt (backbone.weights=FILE)",
    )
