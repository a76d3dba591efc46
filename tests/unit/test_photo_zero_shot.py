"""How a small CLIP is measured on packs: classes that are known and not, recall, intervals, chance."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from photo_packs import PHOTO, photo_zero_shot, write_packs


def test_a_share_has_an_interval_a_number_and_a_chance() -> None:
    found = photo_zero_shot.share(np.array([True, False, True, True]), 0.25)
    assert found == {"value": 0.75, "interval": [0.3006, 0.9544], "n": 4, "chance": 0.25}


def test_only_the_chosen_classes_compete() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = np.eye(3, dtype=np.float32)[[1, 0, 2]]
    truth = np.array([0, 0, 2])
    assert photo_zero_shot.by_classes(images, texts, truth, [0, 1, 2]).tolist() == [False, True, True]
    assert photo_zero_shot.by_classes(images, texts, truth, [0, 2]).tolist() == [True, True, True]
    assert photo_zero_shot.by_classes(images, texts, truth, [2]).tolist() == [True]


def test_recall_is_the_share_with_an_own_partner_among_the_first_five() -> None:
    images = np.eye(8, dtype=np.float32)
    texts = np.repeat(images, photo_zero_shot.PER_IMAGE, axis=0)
    everyone = np.ones(8, dtype=np.bool_)
    found = photo_zero_shot.recalls(images, texts, everyone)
    assert found["image_to_text_r5"]["value"] == found["text_to_image_r5"]["value"] == 1
    assert (found["image_to_text_r5"]["n"], found["text_to_image_r5"]["n"]) == (8, 40)
    assert found["text_to_image_r5"]["chance"] == 0.625
    found = photo_zero_shot.recalls(images, np.roll(texts, photo_zero_shot.PER_IMAGE, axis=0), everyone)
    assert found["image_to_text_r5"]["value"] == 0


def test_recall_of_some_images_is_among_all_of_them() -> None:
    images = np.eye(8, dtype=np.float32)
    texts = np.repeat(images, photo_zero_shot.PER_IMAGE, axis=0)
    texts[:5] = images[1]  # the captions of image 0 are those of another
    asked = np.arange(8) < 2
    found = photo_zero_shot.recalls(images, texts, asked)
    assert found["text_to_image_r5"] == {"value": 1.0, "interval": [1.0, 1.0], "n": 10, "chance": 0.625}
    assert found["image_to_text_r5"]["n"] == 2
    apart = photo_zero_shot.recalls(images, texts, ~asked)
    assert (apart["text_to_image_r5"]["n"], apart["image_to_text_r5"]["value"]) == (30, 1.0)


def test_chance_is_what_random_embeddings_reach() -> None:
    draw = np.random.default_rng(0)
    images = draw.standard_normal((400, 16)).astype(np.float32)
    texts = draw.standard_normal((400 * photo_zero_shot.PER_IMAGE, 16)).astype(np.float32)
    for found in photo_zero_shot.recalls(images, texts, np.ones(400, dtype=np.bool_)).values():
        assert found["chance"] == pytest.approx(0.0125, abs=1e-4)
        assert found["value"] == pytest.approx(found["chance"], abs=0.02)


def test_figures_of_a_model_on_small_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_packs(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x", str(PHOTO), "--weights", "random", "--packs", str(tmp_path)])
    photo_zero_shot.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["cifar100"]["known"]["value"], found["cifar100"]["known"]["n"]) == (1, 2)
    classes = {
        name: {group: f["classes"] for group, f in found[name].items()} for name in ("cifar100", "cifar10")
    }
    assert classes["cifar100"] == {"unseen": 2, "known": 1, "all": 3}
    assert classes["cifar10"] == {"known": 3, "all": 3}
    # `fox`, `bed` and `sea` are names in other packs, whatever their capitals.
    assert set(found["food101"]) == {"unseen", "all"}
    captions = found[photo_zero_shot.CAPTIONS]
    assert {side: f["text_to_image_r5"]["n"] for side, f in captions.items()} == {
        "all": 15,
        "train": 5,
        "held_out": 10,
    }
    assert captions["all"]["text_to_image_r5"]["value"] == 1
