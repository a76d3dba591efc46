"""How a small CLIP is measured on packs: classes that are known and not, recall, intervals."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
import photo_zero_shot  # noqa: E402

sys.path.remove(SCRIPTS)

PHOTO = Path(__file__).resolve().parents[2] / "src/everclip/models/builtin/photo"


def test_a_rate_has_half_an_interval() -> None:
    assert photo_zero_shot.rate(np.array([True, False, True, True])) == {"percent": 75.0, "half": 42.4}


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
    found = photo_zero_shot.recalls(images, texts)
    assert found["image_to_text_r5"]["percent"] == found["text_to_image_r5"]["percent"] == 100
    found = photo_zero_shot.recalls(images, np.roll(texts, photo_zero_shot.PER_IMAGE, axis=0))
    assert found["image_to_text_r5"]["percent"] == 0


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (value, 90, 255 - value)).save(stream, "PNG")
    return stream.getvalue()


def test_figures_of_a_model_on_small_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("photo_pretrain", *photo_zero_shot.CLASSES, photo_zero_shot.CAPTIONS):
        (tmp_path / name).mkdir()
    (tmp_path / "photo_pretrain/card.json").write_text(json.dumps({"classes": {"cifar100": ["fox"]}}))
    rows = pa.table({"image": [picture(v) for v in (0, 100, 200)], "class_name": ["fox", "bed", "sea"]})
    for name in photo_zero_shot.CLASSES:
        pq.write_table(rows, tmp_path / name / "test.parquet")
        pq.write_table(rows, tmp_path / name / "train.parquet")
    captions = [[{"lang": "en", "text": f"A dog {i} {k} ."} for k in range(6)] for i in range(3)]
    pictures = pa.table({"image": rows["image"], "captions": captions})
    pq.write_table(pictures, tmp_path / photo_zero_shot.CAPTIONS / "val.parquet")
    monkeypatch.setattr(sys, "argv", ["x", str(PHOTO), "--weights", "random", "--packs", str(tmp_path)])
    photo_zero_shot.main()
    found = json.loads(capsys.readouterr().out)
    assert found["cifar100"]["known"] == {"percent": 100.0, "half": 0.0}
    assert set(found["food101"]) == {"unseen", "all"}
    assert found[photo_zero_shot.CAPTIONS]["text_to_image_r5"]["percent"] == 100
