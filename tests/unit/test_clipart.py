"""Pictures without names for the training of builtin:tiny."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
import build_clipart  # noqa: E402

sys.path.remove(SCRIPTS)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_each_picture_is_kept_once_and_the_rest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 30, 4), dtype=np.uint8)
    noise[..., 3] = 255
    _save(tmp_path / "animals/cat.png", noise)
    _save(tmp_path / "animals/same_cat.png", noise)
    _save(tmp_path / "blank.png", np.zeros((20, 20, 4), np.uint8))  # transparent: white on white
    _save(tmp_path / "special/patterns/tile.png", noise[::-1].copy())
    (tmp_path / "cut.png").write_bytes((tmp_path / "animals/cat.png").read_bytes()[:200])
    _save(tmp_path / "known.png", noise[:, ::-1].copy())
    known = build_clipart.picture(tmp_path / "known.png")
    assert known is not None
    emoji = pa.table({"image": [build_clipart.encode(known)]})
    monkeypatch.setattr(build_clipart.builtin_emoji, "drawings", lambda language: emoji)
    table, left_out = build_clipart.build(tmp_path)
    assert table["image_id"].to_pylist() == ["clipart/animals/cat"]
    assert left_out["equal"] == ["animals/same_cat.png"]
    assert left_out["blank"] == ["blank.png"]
    assert left_out["folder"] == ["special/patterns/tile.png"]
    assert [line.partition(":")[0] for line in left_out["unreadable"]] == ["cut.png"]
    assert left_out["emoji"] == ["known.png"]


def test_a_large_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_clipart, "LARGEST", 100)
    _save(tmp_path / "a.png", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(ValueError, match="20x20 pixels"):
        build_clipart.picture(tmp_path / "a.png")


def test_another_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="try --fetch"):
        build_clipart.require_archive(tmp_path)
    (tmp_path / "openclipart-png_1_all.deb").write_bytes(b"x")
    with pytest.raises(ValueError, match="expected"):
        build_clipart.require_archive(tmp_path)
