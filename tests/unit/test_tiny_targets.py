"""How builtin:tiny gets its joint space and its text tower."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from everclip.config import BackboneConfig
from everclip.models.backbone import load_backbone

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
import text_tower  # noqa: E402
import tiny_targets  # noqa: E402

sys.path.remove(SCRIPTS)

GENERATOR = np.random.default_rng(0)


def test_whitening_makes_the_shrunk_covariance_within_a_class_the_identity() -> None:
    labels = np.repeat(np.arange(40), 50)
    stretch = np.diag([9.0, 1.0, 0.2, 4.0])
    features = GENERATOR.normal(size=(40, 4))[labels] + GENERATOR.normal(size=(2000, 4)) @ stretch
    mapping, centre = tiny_targets.whitened(features, labels, 40, 4)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(40)])
    assert np.allclose(centre, means.mean(axis=0))
    own = features - means[labels]
    covariance = own.T @ own / len(own)
    covariance += tiny_targets.SHRINKAGE * np.trace(covariance) / 4 * np.eye(4)
    assert np.allclose(mapping.T @ covariance @ mapping, np.eye(4), atol=1e-6)


def test_class_means_are_those_of_a_loop() -> None:
    rows, labels = GENERATOR.normal(size=(30, 3)), GENERATOR.permutation(np.arange(30) % 5)
    means = tiny_targets.class_means(rows, labels, 5)
    assert np.allclose(means, [rows[labels == c].mean(axis=0) for c in range(5)])


def _table() -> pa.Table:
    return pa.table(
        {
            "name": ["cat", "cat", "dog", "dog", "red car", "red car"],
            "keywords": [["pet"], ["pet"], ["pet", "bark"], ["pet", "bark"], None, None],
        }
    )


def _embed(texts: list[str]) -> np.ndarray:
    rows = [np.random.default_rng(sum(map(ord, text))).normal(size=80) for text in texts]
    return tiny_targets.unit(np.stack(rows))


def test_the_joint_space_joins_what_is_seen_and_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_targets, "SEEN", 2)
    monkeypatch.setattr(tiny_targets, "READ", 2)
    centres = np.array([[5.0, 0, 0], [0, 5, 0], [0, 0, 5]])[[0, 0, 1, 1, 2, 2]]
    features = (centres + 0.1 * GENERATOR.normal(size=(6, 3))).astype(np.float32)
    held_out = pa.table({"name": ["cat", "red car"]})
    targets = tiny_targets.make_targets(_table(), held_out, features, features[[0, 4]], _embed)
    assert targets.names == ["cat", "dog", "red car"]
    assert targets.accuracy == 1
    assert targets.bank.shape == (3, 4)
    assert targets.images.shape == (6, 4)
    assert np.allclose(np.linalg.norm(targets.images, axis=1), 1, atol=1e-5)
    # Drawings of one emoji share the read part, and it has the stated share of the length.
    assert np.allclose(targets.images[0, 2:], targets.images[1, 2:], atol=1e-6)
    ratio = np.linalg.norm(targets.images[:, 2:], axis=1) / np.linalg.norm(targets.images[:, :2], axis=1)
    assert np.allclose(ratio, tiny_targets.READ_WEIGHT, atol=1e-5)
    # A picture without a name is seen as a drawing is; what it means is a guess, as long as a name's at most.
    unnamed = targets.of_pictures(features)
    seen = unnamed[:, :2] / np.linalg.norm(unnamed[:, :2], axis=1, keepdims=True)
    own = targets.images[:, :2] / np.linalg.norm(targets.images[:, :2], axis=1, keepdims=True)
    assert np.allclose(seen, own, atol=1e-5)
    groups = tiny_targets.text_groups(targets, _table(), _embed, ["cat", "pet", "stone"])
    assert [list(g.texts) for g in groups] == [["cat", "dog", "red car"], ["bark", "pet"], ["stone"]]
    assert [g.names for g in groups] == [True, False, False]
    pictured = tiny_targets.unit(targets.bank[[0, 1]].mean(axis=0))
    wanted = tiny_targets.unit(pictured + targets.of_texts(_embed(["pet"]))[0])
    assert np.allclose(groups[1].targets[1], wanted, atol=1e-5)


def test_the_ridge_regression_is_that_of_the_normal_equations() -> None:
    inputs, outputs = GENERATOR.normal(size=(50, 4)), GENERATOR.normal(size=(50, 3))
    found = tiny_targets.ridge(inputs, outputs)
    extra = np.sqrt(tiny_targets.RIDGE) * np.eye(4)
    stacked = np.linalg.lstsq(np.vstack([inputs, extra]), np.vstack([outputs, np.zeros((4, 3))]))[0]
    assert np.allclose(found, stacked, atol=1e-5)


def test_common_words_are_those_that_were_counted(tmp_path: Path) -> None:
    (tmp_path / "cntlist.rev").write_text("ice_cream%1:13:00:: 1 5\ndog%1:05:00:: 1 42\ndog%1:18:01:: 2 1\n")
    assert tiny_targets.common_words(tmp_path) == ["dog", "ice cream"]


def test_the_training_drawings_hold_no_held_out_drawing() -> None:
    own, held_out = tiny_targets.training_drawings(None)
    assert set(own["image_id"].to_pylist()).isdisjoint(held_out["image_id"].to_pylist())
    assert not any(own["held_out"].to_pylist())
    assert max(own["year"].to_pylist()) == 2015


def _backbone():  # type: ignore[no-untyped-def]
    return load_backbone(BackboneConfig(name="builtin:tiny", weights="random"), 0)


def test_the_text_tower_learns_its_targets_and_nothing_else_moves() -> None:
    backbone = _backbone()
    before = {k: v.clone() for k, v in backbone.clip.state_dict().items()}
    texts = ["cat", "dog", "car", "tree"]
    targets = torch.nn.functional.normalize(torch.randn(4, 192, generator=torch.Generator().manual_seed(0)))
    group = text_tower.TextGroup(texts, targets, 1.0, ("{}", "an emoji of {}"), names=True)
    text_tower.fit_text_tower(backbone, [group], 150, batch=8, lr=3e-3)
    found = text_tower.encoded(backbone, texts)
    assert ((found @ targets.T).argmax(dim=1) == torch.arange(4)).all()
    assert (found * targets).sum(dim=1).mean() > 0.8
    after = backbone.clip.state_dict()
    for name in before:
        if name.startswith("visual") or name == "logit_scale":
            assert torch.equal(before[name], after[name]), name


def test_wrong_targets_are_refused() -> None:
    group = text_tower.TextGroup(["a"], torch.zeros(1, 5), 1.0)
    with pytest.raises(ValueError, match=r"found \(1, 5\), expected \(1, 192\)"):
        text_tower.fit_text_tower(_backbone(), [group], 1)
    group = text_tower.TextGroup(["a"], torch.zeros(1, 192), 0.4)
    with pytest.raises(ValueError, match=r"a sum of 0\.4, expected 1"):
        text_tower.fit_text_tower(_backbone(), [group], 1)
