"""Distillation of feature maps: crops of an image and of its map agree, and maps are written in pieces."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

import everclip
from everclip.config import BackboneConfig
from everclip.models.backbone import load_backbone

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
import feature_maps  # noqa: E402
import map_distill  # noqa: E402

sys.path.remove(SCRIPTS)

NAMES = 7
SIDE = 16
"""Of the images of the micro model, in pixels."""


def write_folder(folder: Path, ids: list[str], width: int) -> Path:
    """Write random maps of 4 x 4 places."""
    draw = np.random.default_rng(0)
    np.save(folder / "maps.npy", draw.normal(size=(len(ids), 16, width)).astype(np.float16))
    bank = draw.normal(size=(NAMES, width))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    feature_maps.write_names(folder, ids, bank)
    return folder


@pytest.fixture
def method(micro_folder: Path, tmp_path: Path) -> map_distill.MapDistill:
    backbone = load_backbone(BackboneConfig(name=str(micro_folder / "model")), 0)
    folder = write_folder(tmp_path, ["b", "a", "c"], backbone.embedding_width())
    return map_distill.MapDistill(backbone, map_distill.MapDistillSettings(maps=str(folder), keep=1.0))


def test_a_crop_shows_the_same_place_of_image_and_map() -> None:
    # Values that are linear in the coordinates survive bilinear sampling, so a crop of both must agree.
    def plane(side: int) -> torch.Tensor:
        middle = (torch.arange(side) + 0.5) / side * 2 - 1
        return torch.stack(torch.meshgrid(middle, middle, indexing="ij")).expand(32, 2, side, side)

    torch.manual_seed(0)
    crops = map_distill.random_crops(32, 0.3, 1.5)
    fine = map_distill.look(plane(64), crops, 8)
    coarse = map_distill.look(plane(16), crops, 8)
    inside = fine.abs().amax(dim=1) < 1 - 1 / 16  # nearer to the border than half a place, the border repeats
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(fine.transpose(0, 1)[:, inside], coarse.transpose(0, 1)[:, inside])


def test_crops_lie_inside_and_have_the_asked_area() -> None:
    torch.manual_seed(0)
    crops = map_distill.random_crops(1000, 0.4, 1.33)
    sizes, middles = torch.stack([crops[:, 0, 0].abs(), crops[:, 1, 1]]), crops[:, :, 2].T
    assert bool((middles.abs() + sizes <= 1 + 1e-6).all())
    assert float(sizes.prod(dim=0).min()) > 0.4 / 1.33  # a clamped side is at most 1.33 ** 0.5 too long
    assert 0.4 < float((crops[:, 0, 0] < 0).float().mean()) < 0.6


def test_with_every_patch_the_tower_is_open_clips_own(method: map_distill.MapDistill) -> None:
    pixels = torch.randn(2, 3, SIDE, SIDE)
    method.eval()
    own = method.backbone.encode_image(pixels)
    embedding, tokens = method._encode(pixels)
    torch.testing.assert_close(embedding, functional.normalize(own, dim=1))
    assert tokens.shape[1] == method._grid() ** 2


def test_losses_equal_those_of_each_image_by_itself(
    method: map_distill.MapDistill, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = map_distill.random_crops(2, 0.5, 1.2)
    monkeypatch.setattr(map_distill, "random_crops", lambda *_: crops)
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.arange(float(np.prod(shape))).view(shape))
    pixels = torch.randn(2, 3, SIDE, SIDE)
    method.eval()
    batch: Any = {"main": {"image": pixels, "image_id": ["c", "b"]}}
    losses = method(batch, None)
    maps = np.load(Path(method.settings.maps) / "maps.npy")
    bank = torch.from_numpy(np.load(Path(method.settings.maps) / "bank.npy"))
    image, patches, names = [], [], []
    for i, row in enumerate((2, 0)):
        whole = torch.from_numpy(maps[row].astype(np.float32)).T.reshape(1, -1, 4, 4)
        local = map_distill.look(whole, crops[i : i + 1], method._grid())[0].flatten(1)
        goal = functional.normalize(local.mean(dim=1), dim=0)
        seen = map_distill.look(pixels[i : i + 1], crops[i : i + 1], SIDE)
        embedding, tokens = method._encode(seen)
        image.append(1 - embedding[0] @ goal)
        patches.append(1 - functional.cosine_similarity(method.head(tokens[0]), local.T).mean())
        scores = (20 * bank @ embedding[0]).log_softmax(dim=0)
        names.append(-((20 * bank @ goal).softmax(dim=0) * scores).sum())
    torch.testing.assert_close(losses["image"], torch.stack(image).mean())
    torch.testing.assert_close(losses["patches"], torch.stack(patches).mean())
    torch.testing.assert_close(losses["names"], 0.3 * torch.stack(names).mean())


def test_a_run_trains_the_image_tower_alone(micro_folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(micro_folder / "data.parquet")
    keys = table["image_id" if "image_id" in table.column_names else "id"].to_pylist()
    before = load_backbone(BackboneConfig(name=str(micro_folder / "model")), 0)
    (tmp_path / "maps").mkdir()
    write_folder(tmp_path / "maps", sorted(set(keys)), before.embedding_width())
    config = [
        str(micro_folder / "single.yaml"),
        f"backbone.name={micro_folder / 'model'}",
        f"output={tmp_path / 'run'}",
        f"method={SCRIPTS}/map_distill.py:MapDistill",
        f"method.maps={tmp_path / 'maps'}",
        "training.steps=3",
        "training.batch_size=8",
    ]
    everclip.execute(*config)
    after = everclip.Learner.load(tmp_path / "run").method.backbone
    moved = {
        name
        for name, tensor in before.clip.state_dict().items()
        if not torch.equal(tensor, after.clip.state_dict()[name])
    }
    assert "visual.conv1.weight" in moved
    assert all(name.startswith("visual.") for name in moved)


def test_maps_go_on_where_a_call_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_maps, "CHUNK", 4)
    asked: list[tuple[int, int]] = []

    def maps_of(teacher: Any, images: np.ndarray) -> np.ndarray:
        return np.repeat(images.reshape(-1, 1, 1), 9, axis=1).astype(np.float32) * np.ones(5, np.float32)

    def images(start: int, stop: int) -> np.ndarray:
        if (start, stop) == (4, 8) and not asked.count((4, 8)):
            asked.append((start, stop))
            raise KeyboardInterrupt
        asked.append((start, stop))
        return np.arange(start, stop)

    monkeypatch.setattr(feature_maps, "image_maps", maps_of)
    write: Any = feature_maps.write_maps
    args = (tmp_path, images, 10, None, np.full(5, 1.0, np.float32), np.ones((5, 2), np.float32))
    with pytest.raises(KeyboardInterrupt):
        write(*args)
    write(*args)
    found = np.load(tmp_path / "maps.npy")
    assert found.shape == (10, 9, 2)
    np.testing.assert_allclose(found[:, 3, 1], 5 * (np.arange(10) - 1.0))
    assert asked.count((0, 4)) == 1
    write(*args)
    assert asked[-1] == (8, 10)
