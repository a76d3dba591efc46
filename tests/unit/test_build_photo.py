"""How built-in models are packed, and the card of builtin:photo: what is measured, sources with their terms."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from photo_packs import build_photo, packing, write_packs
from safetensors.torch import load_file, save_file

import everclip

TARGETS = {
    "texts": [4, 3, 2],
    "text_steps": 10,
    "cosine_of_names": 0.9,
    "classes_with_photographs": 3,
    "teacher_accuracy_on_them": 0.8,
}
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def run(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the two-layer CLIP, which started from weights beside a record of its targets."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copy(micro_folder / "model" / WEIGHTS, folder)
    (folder / "targets.json").write_text(json.dumps(TARGETS))
    everclip.execute(
        str(micro_folder / "single.yaml"),
        f"backbone.name={micro_folder / 'model'}",
        f"backbone.weights={folder / WEIGHTS}",
        f"output={folder / 'run'}",
        "method=finetune",
        "training.steps=2",
        "training.batch_size=8",
        "training.device=cpu",
        "report=false",
    )
    return folder / "run"


def test_packed_weights_are_those_of_the_run_in_half_precision(run: Path, tmp_path: Path) -> None:
    packing.pack(run, tmp_path)
    packed = load_file(tmp_path / WEIGHTS)
    method = everclip.Learner.load(run).method
    found = method.backbone.clip.state_dict()
    assert set(packed) == set(found)
    assert torch.equal(packed["logit_scale"], found["logit_scale"])
    assert packed["logit_scale"].dtype == torch.float32
    rest = {key: value for key, value in packed.items() if key != "logit_scale"}
    assert {value.dtype for value in rest.values()} == {torch.float16}
    assert all(torch.equal(value, found[key].half()) for key, value in rest.items())
    assert (tmp_path / WEIGHTS).stat().st_mode & 0o044 == 0o044


def test_a_run_is_packed_measured_and_described(
    run: Path, micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs, folder = write_packs(tmp_path / "packs"), tmp_path / "model"
    shutil.copytree(micro_folder / "model", folder)
    (folder / WEIGHTS).unlink()
    monkeypatch.setattr(build_photo, "FOLDER", folder)
    monkeypatch.setattr(sys, "argv", ["x", str(run), "--packs", str(packs)])
    build_photo.main()
    card, page = (folder / "card.json").read_text(), (folder / "CARD.md").read_text()
    facts = json.loads(card)
    assert facts["bytes"] == (folder / WEIGHTS).stat().st_size
    assert facts["parameters"] == sum(v.numel() for v in load_file(folder / WEIGHTS).values())
    assert facts["training"]["sources"] == {"cifar100": 30, "cifar10": 20, "imagenet_sample": 10}
    assert facts["training"]["steps"] == 2
    for name in (
        "CIFAR-100",
        "CIFAR-10",
        "ImageNet",
        "non-commercial research",
        "EfficientNet-Lite2",
        "WordNet",
    ):
        assert name in page
    assert "for trying and measuring, not for service" in " ".join(page.split())

    monkeypatch.setattr(sys, "argv", ["x", "--packs", str(packs)])  # the packed weights, measured again
    build_photo.main()
    assert (folder / "card.json").read_text() == card
    assert (folder / "CARD.md").read_text() == page

    monkeypatch.setattr(sys, "argv", ["x", "--maps", str(run), "--packs", str(packs)])  # the second part
    build_photo.main()
    facts = json.loads((folder / "card.json").read_text())
    assert (facts["version"], facts["training"]["maps"]["steps"], facts["training"]["steps"]) == (2, 2, 2)
    assert "scripts/photo_maps.yaml" in (folder / "CARD.md").read_text()

    text = tmp_path / "text"  # the third part
    text.mkdir()
    weights = {key: value.float() for key, value in load_file(folder / WEIGHTS).items()}
    save_file({**weights, "text_projection": weights["text_projection"] + 1}, text / "text.safetensors")
    (text / "text.json").write_text(json.dumps({"text_steps": 7, "cosine_of_names": 0.9}))
    monkeypatch.setattr(sys, "argv", ["x", "--text", str(text), "--packs", str(packs)])
    build_photo.main()
    packed = load_file(folder / WEIGHTS)
    assert torch.equal(packed["text_projection"], (weights["text_projection"] + 1).half())
    assert "for 7 more steps" in (folder / "CARD.md").read_text()


def test_rows_of_the_card() -> None:
    figures = {"value": 0.5, "interval": [0.4, 0.6], "n": 10, "chance": 0.01, "classes": 100}
    few = {**figures, "classes": 50}
    found = {
        "cifar10": {"known": figures, "all": figures},
        "cifar100": {"unseen": few, "known": few, "all": figures},
        "caltech101": {"unseen": figures, "all": figures},
        "food101": {"all": figures},
    }
    assert build_photo.class_rows(found).splitlines() == [
        "| cifar10 | all classes, each of them known | 100 | 50.0 % (40.0-60.0) | 1.0 % | 10 |",
        "| cifar100 | all classes | 100 | 50.0 % (40.0-60.0) | 1.0 % | 10 |",
        "| cifar100 | known | 50 | 50.0 % (40.0-60.0) | 1.0 % | 10 |",
        "| cifar100 | unseen | 50 | 50.0 % (40.0-60.0) | 1.0 % | 10 |",
        "| caltech101 | all classes | 100 | 50.0 % (40.0-60.0) | 1.0 % | 10 |",
        "| food101 | all classes | 100 | 50.0 % (40.0-60.0) | 1.0 % | 10 |",
    ]


def test_a_source_without_terms_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "photo_pretrain").mkdir()
    (tmp_path / "photo_pretrain/card.json").write_text(json.dumps({"counts": {"cifar10": 1, "holidays": 2}}))
    with pytest.raises(ValueError, match="terms of holidays"):
        build_photo.sources(tmp_path)
