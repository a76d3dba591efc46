"""Cards of public data sets: their facts hold together, and every layout is read as its own files say."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import public_data
from everclip import registry
from everclip.data.catalog.cards import card_of, cards
from everclip.data.reading.formats.layouts.common import label_of
from everclip.data.reading.formats.matlab import read_matlab
from everclip.data.reading.formats.published_splits import random_sides
from everclip.errors import ConfigError, DataError
from public_data import load, sides

MTIL = (
    "aircraft",
    "caltech101",
    "cifar100",
    "dtd",
    "eurosat",
    "flowers",
    "food101",
    "mnist",
    "pets",
    "cars",
    "sun397",
)


# -- facts ----------------------------------------------------------------------------------------------------


def test_names_of_the_eleven_data_sets_are_as_many_as_published() -> None:
    names = Counter(name for card in MTIL for name in cards()[card].names)
    assert (names.total(), len(names), sum(count > 1 for count in names.values())) == (1201, 1176, 24)
    assert names["sunflower"] == 3
    assert names["river"] == names["forest"] == 2
    assert [len(cards()[card].names) for card in MTIL] == [100, 101, 100, 47, 10, 102, 101, 10, 37, 196, 397]
    assert [len(cards()[card].texts) for card in MTIL] == [2, 34, 18, 8, 3, 1, 1, 1, 1, 9, 2]
    # X-TAIL leaves out CIFAR100 and the second face class.
    assert names.total() - len(cards()["cifar100"].names) - 1 == 1100


def test_published_orders_are_permutations_of_the_classes() -> None:
    starts = {
        "cifar100": (87, 0, 52, 58, 44, 91, 68, 97, 51, 15),
        "imagenet100": (68, 56, 78),
        "imagenet": (54, 7),
    }
    for name, size in (("cifar100", 100), ("imagenet100", 100), ("tinyimagenet", 200), ("imagenet", 1000)):
        card = cards()[name]
        assert sorted(card.order) == list(range(size)), name
        assert len(set(card.published_order())) == size
        assert card.order[: len(starts.get(name, ()))] == starts.get(name, ())
    assert cards()["cifar100"].published_order()[:2] == ("television", "apple")
    with pytest.raises(ConfigError, match=r"dtd has no published class order; cifar100, imagenet"):
        cards()["dtd"].published_order()


def test_names_and_templates_of_imagenet_are_those_of_open_clip() -> None:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    assert cards()["imagenet"].names == tuple(IMAGENET_CLASSNAMES)
    assert cards()["imagenet100"].names == tuple(IMAGENET_CLASSNAMES[:100])
    assert set(cards()["tinyimagenet"].names) <= set(IMAGENET_CLASSNAMES)
    assert len(set(cards()["imagenet"].keys)) == 1000
    assert "missile (744)" in cards()["imagenet"].keys
    assert cards()["imagenet-r"].texts == tuple(t("{}") for t in OPENAI_IMAGENET_TEMPLATES)
    assert len(cards()["imagenet-r"].texts) == 80
    assert all(text.count("{}") == 1 for text in cards()["imagenet-r"].texts)


def test_own_labels_belong_to_their_names() -> None:
    caltech, eurosat = cards()["caltech101"], cards()["eurosat"]
    # Sorted folders, capitals first, are the label order of the published names.
    assert list(caltech.labels) == sorted(caltech.labels)
    assert list(eurosat.labels) == sorted(eurosat.labels)
    found = {
        own: caltech.names[label_of(own, caltech)] for own in ("Faces", "yin_yang", "airplanes", "car_side")
    }  # type: ignore[index]
    assert found == {
        "Faces": "off-center face", "yin_yang": "yin and yang symbol", "airplanes": "airplane",
        "car_side": "side of a car",
    }  # fmt: skip
    assert [label_of(text, cards()["mnist"]) for text in ("3", "three", "3 - three", "11")] == [3, 3, 3, None]


def test_every_card_fits_its_form_and_its_counts() -> None:
    for card in cards().values():
        assert card.get
        assert card.folders
        if isinstance(card.classes, tuple) and card.labels:
            assert len(card.labels) == len(card.classes)
    assert {cards()[name].counts.test for name in MTIL} == {
        3333, 1736, 10000, 1880, 5400, 6149, 25250, 3669, 8041, 21751,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"catalog:dtt.*no such data set.*dtd"):
        card_of("catalog:dtt")
    with pytest.raises(ConfigError, match=r"catalog:mnist/zhou.*expected catalog:mnist"):
        card_of("catalog:mnist/zhou")


def test_random_split_has_the_published_sizes() -> None:
    for total, train in ((8677, 6941), (27000, 21600), (108754, 87003)):
        assert random_sides(total).count("train") == train
    # torch.randperm(10, generator=torch.Generator().manual_seed(42)) is 2 6 1 8 4 5 0 9 3 7.
    assert [i for i, side in enumerate(random_sides(10)) if side == "test"] == [3, 7]


# -- layouts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MTIL)
def test_a_usual_layout_gives_names_and_sides(public_root: Path, name: str) -> None:
    table, card = load(public_root, name), cards()[name]
    wanted = {k for k, _ in public_data.classes(name, None if name == "mnist" else 2)}
    assert {card.names.index(n) for n in table.column("class_name")} == wanted
    assert table.column("class_key") == table.column("class_name")
    assert set(sides(table)) == ({"train", "val", "test"} if card.counts.val else {"train", "test"})
    if card.split == "official" and name != "mnist":
        each = public_data.COUNTS if card.counts.val else {"train": 3, "test": 2}
        assert sides(table) == {side: count * len(wanted) for side, count in each.items()}


def test_labels_of_numbers_are_those_of_the_files(public_root: Path) -> None:
    held = read_matlab(public_root / "flowers-102" / "imagelabels.mat")["labels"].ravel()
    table = load(public_root, "flowers")
    for position in range(len(table)):
        number = int(Path(table.origin(position)).stem.split("_")[1])
        assert table.column("class_name")[position] == cards()["flowers"].names[int(held[number - 1]) - 1]
    rows = read_matlab(public_root / "stanford_cars" / "devkit" / "cars_train_annos.mat")["annotations"]
    assert {(r["fname"], int(r["class"].item())) for r in rows} >= {("00001.jpg", 1), ("00004.jpg", 2)}


def test_pixels_of_packed_pictures_are_kept(public_root: Path) -> None:
    from io import BytesIO

    from PIL import Image

    table = load(public_root, "cifar100")
    row = np.fromfile(public_root / "cifar-100-binary" / "test.bin", np.uint8)[: 2 + 3072]
    at = table.column("split").index("test")
    shown = np.asarray(Image.open(BytesIO(table.value("image", at))))
    assert np.array_equal(shown.transpose(2, 0, 1).ravel(), row[2:])
    assert table.column("class_name")[at] == cards()["cifar100"].names[row[1]]


def test_packed_idx_files_are_the_same_data(public_root: Path, tmp_path: Path) -> None:
    shutil.copytree(public_root / "MNIST", tmp_path / "MNIST")
    for file in (tmp_path / "MNIST" / "raw").iterdir():
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert load(tmp_path, "mnist").fingerprint == load(public_root, "mnist").fingerprint


def test_the_split_files_of_coop_decide_sides_and_classes(public_root: Path, tmp_path: Path) -> None:
    table = load(public_root, "caltech101/zhou")
    assert "centered face" not in table.column("class_name")
    assert "off-center face" in table.column("class_name")
    classes = len(set(table.column("class_name")))
    assert sides(table) == {"train": 3 * classes, "val": classes, "test": classes}
    for name in ("dtd", "eurosat", "flowers", "food101", "pets", "cars", "sun397"):
        table, plain = load(public_root, f"{name}/zhou"), load(public_root, name)
        known = {plain.content(i): plain.column("class_name")[i] for i in range(len(plain))}
        assert all(known[table.content(i)] == table.column("class_name")[i] for i in range(len(table))), name
    shutil.copytree(public_root / "oxford-iiit-pet", tmp_path / "pets")
    (tmp_path / "pets" / "split_zhou_OxfordPets.json").unlink()
    with pytest.raises(ConfigError, match=r"split_zhou_OxfordPets.json is in none of .*x-tail-hash"):
        load(tmp_path, "pets/zhou")


def test_imagenet_and_its_relatives(tmp_path: Path) -> None:
    public_data.shifts(tmp_path)
    names = cards()["imagenet"].names
    expected = {
        "imagenet-v2": {0, 250, 500, 750}, "imagenet-r": {1, 3, 5, 7}, "imagenet-a": {2, 4, 6, 8},
        "imagenet-sketch": {0, 1, 2, 3, 4},
    }  # fmt: skip
    for name, labels in expected.items():
        table = load(tmp_path, name)
        assert set(table.column("class_name")) == {names[label] for label in labels}, name
        assert set(table.column("split")) == {"test"}
    assert set(load(tmp_path, "objectnet").column("class_name")) == {"Banana", "Backpack"}
    (tmp_path / "imagenet" / "wnids.txt").unlink()
    with pytest.raises(DataError, match=r"wnids of ImageNet in label order are not known.*wnids.txt"):
        load(tmp_path, "imagenet-r")
    public_data.tinyimagenet(tmp_path, 4)
    table = load(tmp_path, "tinyimagenet")
    assert sides(table) == {"train": 8, "test": 4}
    assert set(table.column("class_name")) == set(cards()["tinyimagenet"].names[:4])


def test_core50_tests_its_three_sessions(tmp_path: Path) -> None:
    public_data.core50(tmp_path, 7)
    table = load(tmp_path, "core50")
    assert {s for s, side in zip(table.column("session"), table.column("split"), strict=True) if side == "test"} == {
        "3", "7", "10",
    }  # fmt: skip
    assert set(table.column("class_name")) == {"plug adapters", "mobile phones"}


# -- files that are not what they should be -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("cifar100", "cifar-100-binary/test.bin", b"\0" * 100, r"test\.bin: 100 bytes are no whole number of rows"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x09", r"not an idx file of 1 dim"),
        ("aircraft", "fgvc-aircraft-2013b/data/images_variant_val.txt", b"1 Zeppelin\n", r"'Zeppelin' is none"),
        ("food101", "food-101/meta/test.json", b"[1]", r"test\.json: expected lists of images by class"),
        ("caltech101", "caltech101/split_zhou_Caltech101.json", b"{}", r"no list 'train'; expected train, val"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(
    public_root: Path, tmp_path: Path, name: str, file: str, content: bytes, message: str
) -> None:
    top = file.split("/")[0]
    shutil.copytree(public_root / top, tmp_path / top)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path, f"{name}/zhou" if "zhou" in file else name)


def test_benchmarks_of_the_field_are_listed_without_torch() -> None:
    wanted = {
        "mtil", "odcl-til", "odcl-cil", "x-tail", "x-tail-hash", "cifar100-b0-10", "cifar100-b0-20", "cifar100-b0-50",
        "tinyimagenet-b100-5", "tinyimagenet-b100-10", "tinyimagenet-b100-20", "imagenet100-b0-10",
        "imagenet100-b50-10", "imagenet1k-b0-10", "core50", "cll-36", "tic-datacomp-m", "tic-datacomp-l", "tic-yfcc15m",
        "tic-redcaps",
    }  # fmt: skip
    assert wanted <= registry.benchmarks().keys()
    assert json.dumps([card.size for card in cards().values()])
