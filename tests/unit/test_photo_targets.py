"""How builtin:photo gets its targets: labels of photographs, texts, and features that are kept in pieces."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
import joint_space  # noqa: E402
import photo_targets  # noqa: E402

sys.path.remove(SCRIPTS)

NOUN = "{:08d} 05 n 01 {} 0 000 | {}"


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (80, 64)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def embed(texts: Sequence[str]) -> np.ndarray:
    rows = [np.random.default_rng(sum(map(ord, text))).normal(size=24) for text in texts]
    return joint_space.unit(np.stack(rows))


def photographs(each: int = photo_targets.FEW) -> pa.Table:
    names = [name for name in ("bread", "fox") for _ in range(each)] + ["trombone"]
    return pa.table({"id": [str(i) for i in range(len(names))], "class_name": names})


def wordnet_folder(folder: Path) -> Path:
    nouns = [
        NOUN.format(1, "fox", "a red animal with a tail; 'the fox ran'"),
        NOUN.format(2, "meadow", "a field of grass"),
        NOUN.format(3, "rarity", "it is not common"),
        NOUN.format(4, "meadow", "x" * (photo_targets.MAX_GLOSS + 1)),
    ]
    (folder / "data.noun").write_text("\n".join(["  licence", *nouns]) + "\n")
    for part in ("verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("")
    (folder / "cntlist.rev").write_text("fox%1:05:00:: 1 5\nmeadow%1:17:00:: 1 3\nrun%2:38:00:: 1 9\n")
    return folder


def test_classes_with_few_photographs_have_no_label() -> None:
    names, labels = photo_targets.labelled(photographs()["class_name"].to_pylist())
    assert names == ["bread", "fox"]
    assert labels.tolist() == [0] * photo_targets.FEW + [1] * photo_targets.FEW + [-1]


def test_a_class_with_photographs_goes_before_the_class_of_imagenet() -> None:
    known = photo_targets.known_names(photographs())
    assert known["bread"] == 1000
    assert known["fox"] == 1001
    assert known["trombone"] == photo_targets.IMAGENET_CLASSNAMES.index("trombone")
    assert known["tench"] == 0


def test_lemmas_are_in_the_order_of_the_class_names() -> None:
    lemmas, glosses = photo_targets.lemmas_and_glosses()
    same = [name in own for name, own in zip(photo_targets.IMAGENET_CLASSNAMES, lemmas, strict=True)]
    assert len(glosses) == 1000
    assert sum(same) > 600


def test_further_texts_are_common_nouns_emoji_and_short_definitions(tmp_path: Path) -> None:
    found = photo_targets.further_texts(wordnet_folder(tmp_path), {"fox": 0})
    assert "meadow" in found["words"]
    assert "grinning face" in found["words"]
    assert not {"fox", "rarity", "run"} & set(found["words"])
    assert found["glosses"] == ["a field of grass", "a red animal with a tail"]


def test_only_english_captions_are_read(tmp_path: Path) -> None:
    rows = [
        [{"lang": "en", "text": "A dog ."}, {"lang": "de", "text": "Ein Hund ."}],
        [{"lang": "en", "text": "A cat ."}],
    ]
    pq.write_table(pa.table({"captions": rows}), tmp_path / "train.parquet")
    assert photo_targets.english_captions(tmp_path / "train.parquet") == ["A cat .", "A dog ."]


def test_the_space_and_the_texts_of_a_small_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_targets, "WIDTH", 8)
    table, random = photographs(), np.random.default_rng(0)
    classifier = random.normal(size=(1000, 16)).astype(np.float32)
    features = random.normal(size=(len(table), 16)).astype(np.float32)
    space = photo_targets.joint_space(table, features, embed, classifier)
    assert space.bank.shape == (1002, 8)
    known = photo_targets.known_names(table)
    further = {"words": ["meadow", "{}"], "glosses": ["a field"], "captions": []}
    names, words, glosses = photo_targets.text_groups(space, known, further, embed)
    assert names.names
    assert torch.equal(names.targets[names.texts.index("fox")], torch.from_numpy(space.bank[1001]))
    assert (words.texts, glosses.texts) == (["meadow", "()"], ["a field"])
    assert names.share + words.share + glosses.share == pytest.approx(1)
    assert all(group.targets.shape == (len(group.texts), 8) for group in (names, words, glosses))


def test_features_are_kept_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_targets, "CHUNK", 2)
    seen: list[tuple[int, ...]] = []

    def features(teacher: object, images: np.ndarray, cache: Path) -> np.ndarray:
        seen.append(images.shape)
        return images.reshape(len(images), -1).mean(axis=1, keepdims=True)

    monkeypatch.setattr(photo_targets, "image_features", features)
    images = [picture((v, v, v)) for v in (10, 20, 30)]
    found = photo_targets.photo_features(torch.nn.Identity(), images, tmp_path)
    assert seen == [(2, 64, 64, 3), (1, 64, 64, 3)]
    assert found[:, 0].tolist() == [10, 20, 30]


def test_all_parquet_files_of_the_folder_are_photographs(tmp_path: Path) -> None:
    for part in range(2):
        rows = {"id": [str(part)], "image": [b"x"], "class_name": ["fox"], "source": ["own"]}
        pq.write_table(pa.table(rows), tmp_path / f"part-{part}.parquet")
    assert photo_targets.photographs(tmp_path).to_pylist() == [
        {"id": str(part), "image": b"x", "class_name": "fox"} for part in range(2)
    ]


def test_the_start_holds_a_fitted_text_tower(tmp_path: Path) -> None:
    targets = torch.nn.functional.normalize(
        torch.randn(3, 256, generator=torch.Generator().manual_seed(0)), dim=1
    )
    group = photo_targets.TextGroup(["fox", "bread", "oak"], targets, 1.0, names=True)
    figures = photo_targets.write_start([group], 3, tmp_path / "start.safetensors")
    assert figures["text_steps"] == 3
    config = photo_targets.BackboneConfig(
        name=str(photo_targets.ARCHITECTURE), weights=str(tmp_path / "start.safetensors")
    )
    scale = photo_targets.load_backbone(config, 0).logit_scale
    assert float(scale.detach()) == pytest.approx(photo_targets.SCALE, rel=1e-4)


@pytest.mark.parametrize("kinds", [["words", "glosses", "captions"], ["glosses", "captions"], ["words"]])
@pytest.mark.parametrize("later", [False, True])
def test_shares_of_texts_fill_a_batch(kinds: list[str], later: bool) -> None:
    shares = photo_targets.further_shares(kinds, later)
    names = photo_targets.NAMES_LATER if later else photo_targets.NAMES
    assert sum(shares.values()) + names == pytest.approx(1)
    if later and len(kinds) == 3:
        assert shares["words"] == photo_targets.WORDS_LATER
