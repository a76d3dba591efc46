"""Cards of public data sets: their facts hold together, and every layout is read as its own files say."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import public_data
from everclip import registry
from everclip.data.catalog.cards import Counts, card_of, cards
from everclip.data.readers.layouts.listed import label_of
from everclip.data.readers.matlab import read_matlab
from everclip.data.readers.published import random_sides
from everclip.data.sources import read
from everclip.data.spec import DataSpec
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.scenarios.load import load_scenario

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


def load(root: Path, source: str, **settings: object) -> Table:
    return read(DataSpec(source=f"catalog:{source}", root=str(root), counts="noted", **settings)).table  # type: ignore[arg-type]


def sides(table: Table) -> Counter[str]:
    return Counter(table.column("split"))


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


def test_names_that_open_clip_holds_are_taken_from_it() -> None:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    assert cards()["imagenet"].names == tuple(IMAGENET_CLASSNAMES)
    assert cards()["imagenet100"].names == tuple(IMAGENET_CLASSNAMES[:100])
    assert set(cards()["tinyimagenet"].names) <= set(IMAGENET_CLASSNAMES)
    assert len(set(cards()["imagenet"].keys)) == 1000
    assert "missile (744)" in cards()["imagenet"].keys
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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The eleven data sets of MTIL with a few classes each."""
    folder = tmp_path_factory.mktemp("public")
    for write in public_data.MTIL:
        write(folder, 2)
    return folder


@pytest.mark.parametrize("name", MTIL)
def test_a_usual_layout_gives_names_and_sides(root: Path, name: str) -> None:
    table, card = load(root, name), cards()[name]
    wanted = {k for k, _ in public_data.classes(name, None if name == "mnist" else 2)}
    assert {card.names.index(n) for n in table.column("class_name")} == wanted
    assert table.column("class_key") == table.column("class_name")
    assert set(sides(table)) == ({"train", "val", "test"} if card.counts.val else {"train", "test"})
    if card.split == "official" and name != "mnist":
        each = public_data.COUNTS if card.counts.val else {"train": 3, "test": 2}
        assert sides(table) == {side: count * len(wanted) for side, count in each.items()}


def test_labels_of_numbers_are_those_of_the_files(root: Path) -> None:
    held = read_matlab(root / "flowers-102" / "imagelabels.mat")["labels"].ravel()
    table = load(root, "flowers")
    for position in range(len(table)):
        number = int(Path(table.origin(position)).stem.split("_")[1])
        assert table.column("class_name")[position] == cards()["flowers"].names[int(held[number - 1]) - 1]
    rows = read_matlab(root / "stanford_cars" / "devkit" / "cars_train_annos.mat")["annotations"]
    assert {(r["fname"], int(r["class"].item())) for r in rows} >= {("00001.jpg", 1), ("00004.jpg", 2)}


def test_pixels_of_packed_pictures_are_kept(root: Path) -> None:
    from io import BytesIO

    from PIL import Image

    table = load(root, "cifar100")
    row = np.fromfile(root / "cifar-100-binary" / "test.bin", np.uint8)[: 2 + 3072]
    at = table.column("split").index("test")
    shown = np.asarray(Image.open(BytesIO(table.value("image", at))))
    assert np.array_equal(shown.transpose(2, 0, 1).ravel(), row[2:])
    assert table.column("class_name")[at] == cards()["cifar100"].names[row[1]]


def test_packed_idx_files_are_the_same_data(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "MNIST", tmp_path / "MNIST")
    for file in (tmp_path / "MNIST" / "raw").iterdir():
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert load(tmp_path, "mnist").fingerprint == load(root, "mnist").fingerprint


def test_the_split_files_of_coop_decide_sides_and_classes(root: Path, tmp_path: Path) -> None:
    table = load(root, "caltech101/zhou")
    assert "centered face" not in table.column("class_name")
    assert "off-center face" in table.column("class_name")
    classes = len(set(table.column("class_name")))
    assert sides(table) == {"train": 3 * classes, "val": classes, "test": classes}
    for name in ("dtd", "eurosat", "flowers", "food101", "pets", "cars", "sun397"):
        table, plain = load(root, f"{name}/zhou"), load(root, name)
        known = {plain.content(i): plain.column("class_name")[i] for i in range(len(plain))}
        assert all(known[table.content(i)] == table.column("class_name")[i] for i in range(len(table))), name
    shutil.copytree(root / "oxford-iiit-pet", tmp_path / "pets")
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


# -- counts and places ----------------------------------------------------------------------------------------


def test_an_incomplete_data_set_is_refused_with_what_is_missing(root: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"Textures \(DTD\) in .*: 6 of 1,880 train pictures, 2 of 1,880 val pictures, 4 of 1,880 test pictures; "
        r"2 of 47 classes \(none of braided, bubbly, bumpy and 42 more\). Expected images/, .* get it from https.*"
        r"scenario.counts=noted",
    ):
        read(DataSpec(source="catalog:dtd", root=str(root)))
    lines = read(DataSpec(source="catalog:dtd", root=str(root), counts="noted")).guesses
    assert any("6 of 1,880 train pictures" in line for line in lines)


def test_a_complete_data_set_needs_no_leave(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete by the split file of CoOp, which leaves a class out; or by the card's counts."""
    for name in ("caltech101/zhou", "flowers/zhou", "cars/zhou", "sun397/zhou"):
        assert len(read(DataSpec(source=f"catalog:{name}", root=str(root))).table) > 9
    public_data.eurosat(tmp_path)
    small = cards()["eurosat"].model_copy(update={"counts": Counts(train=40, test=10)})
    monkeypatch.setitem(cards(), "eurosat", small)
    assert sides(read(DataSpec(source="catalog:eurosat", root=str(tmp_path))).table) == {
        "train": 40,
        "test": 10,
    }
    public_data.draw(tmp_path / "eurosat" / "2750" / "River" / "River_9.jpg")
    with pytest.raises(DataError, match=r"EuroSAT \(RGB\) in .*: 11 of 10 test pictures\. Expected 2750"):
        read(DataSpec(source="catalog:eurosat", root=str(tmp_path)))


def test_a_data_set_of_a_hub_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "prepared"))
    place, commit = tmp_path / "hub/datasets--some--digits", "0123456789abcdef0123456789abcdef01234567"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    folder = place / "snapshots" / commit / "data"
    folder.mkdir(parents=True)
    names = [str(digit) for digit in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for side in ("train", "test"):
        data = [(tmp_path / public_data.draw(tmp_path / f"{side}{i}.png")).read_bytes() for i in range(3)]
        rows = {"image": [{"bytes": d, "path": None} for d in data], "label": [7, 0, 9]}
        path = folder / f"{side}-00000-of-00001.parquet"
        pq.write_table(pa.table(rows, schema=features.arrow_schema), path)
    whole = {
        "name": "mine", "version": 1, "summary": "for tests", "kind": "sources", "protocol": "mtil", "counts": "noted",
        "sources": [{"name": "MNIST", "data": {"source": "catalog:mnist"}}], "places": {"mnist": "hub:some/digits"},
    }  # fmt: skip
    scenario = load_scenario(whole)
    assert [e.name for e in scenario.tasks[0].classes or ()] == ["7 - seven", "0 - zero", "9 - nine"]
    assert len(scenario.eval_sets[0].data) == 3
    assert any("3 of 60,000 train pictures" in line for line in scenario.guesses)


def test_listed_files_that_are_not_there_are_counted(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "dtd", tmp_path / "dtd")
    next((tmp_path / "dtd" / "dtd" / "images" / "banded").glob("*train*")).unlink()
    with pytest.raises(DataError, match=r"5 of 1,880 train pictures"):
        read(DataSpec(source="catalog:dtd", root=str(tmp_path)))


def test_where_data_sets_are_is_said(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERCLIP_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"catalog:dtd.*Set EVERCLIP_DATA, or scenario.root=FOLDER"):
        read(DataSpec(source="catalog:dtd"))
    with pytest.raises(ConfigError, match=r"DTD\) is not below .*Expected .*dtd.* people get it from https"):
        read(DataSpec(source="catalog:dtd", root=str(tmp_path)))
    monkeypatch.setenv("EVERCLIP_DATA", str(root))
    assert len(read(DataSpec(source="catalog:dtd", counts="noted")).table) == 12


def test_a_place_of_another_layout_gives_the_same_classes(tmp_path: Path) -> None:
    """Tables of a hub and class folders call classes by name, own label or number."""
    for name, texts in (("numbers", ["0", "1", "2"]), ("words", ["zero", "one", "two"]), ("folders", None)):
        if texts is None:
            for side in ("train", "test"):
                public_data.class_folders(tmp_path / name / side, ["zero", "one", "two"], 2)
            place = tmp_path / name
        else:
            images = [public_data.draw(tmp_path / name / f"{i}.png") for i in range(6)]
            data = [(tmp_path / name / image).read_bytes() for image in images]
            place = tmp_path / f"{name}.parquet"
            rows = {
                "label": texts * 2,
                "split": ["train"] * 3 + ["test"] * 3,
                "image": pa.array(data, pa.binary()),
            }
            pq.write_table(pa.table(rows), place)
        table = read(DataSpec(source="catalog:mnist", place=str(place), counts="noted")).table
        assert set(table.column("class_name")) == {"0 - zero", "1 - one", "2 - two"}, name
        assert set(table.column("split")) == {"train", "test"}
    pq.write_table(
        pa.table({"label": ["nought"], "image": pa.array([b"x"], pa.binary())}), tmp_path / "odd.parquet"
    )
    with pytest.raises(DataError, match=r"the class 'nought' is none of the 10 of MNIST \(0 - zero, "):
        read(DataSpec(source="catalog:mnist", place=str(tmp_path / "odd.parquet"), counts="noted"))


def test_a_place_without_a_split_is_split_only_where_the_published_split_is_random(tmp_path: Path) -> None:
    public_data.class_folders(tmp_path / "eurosat", list(cards()["eurosat"].labels), 2)
    found = read(DataSpec(source="catalog:eurosat", root=str(tmp_path), counts="noted"))
    assert sides(found.table) == {"train": 16, "test": 4}
    assert any("not the published split" in line for line in found.guesses)
    public_data.class_folders(tmp_path / "dtd", ["banded", "braided"], 2)
    with pytest.raises(DataError, match=r"no split is said; .* has one of its own"):
        load(tmp_path, "dtd")


# -- files that are not what they should be -------------------------------------------------------------------


def test_matlab_files_are_read_as_scipy_reads_them(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    rows = np.array([(3, "a.jpg"), (200, "größe.jpg")], dtype=[("class", object), ("fname", object)])
    numbers = np.arange(6, dtype=np.uint16).reshape(2, 3)
    for packed in (False, True):
        path = tmp_path / f"{packed}.mat"
        scipy_io.savemat(path, {"annotations": rows, "numbers": numbers, "names": np.array(["x", "yy"], object),
                                "tiny": 7}, do_compression=packed)  # fmt: skip
        found = read_matlab(path)
        assert np.array_equal(found["numbers"], numbers)
        assert found["names"] == ["x", "yy"]
        assert [(int(r["class"].item()), r["fname"]) for r in found["annotations"]] == [
            (3, "a.jpg"),
            (200, "größe.jpg"),
        ]
        assert found["tiny"].item() == 7


@pytest.mark.parametrize("cut", [0, 20, 127, 128, 140, 200, -9, -1])
def test_damaged_matlab_files_are_errors(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.mat"
    public_data.matlab(path, labels=[1, 2, 3])
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] if cut else b"no such file at all" * 20)
    if cut == 128:
        assert read_matlab(path) == {}  # a file without variables
        return
    with pytest.raises(DataError, match=r"a\.mat: (is no MATLAB|a damaged)"):
        read_matlab(path)


def test_flipped_bytes_of_a_matlab_file_never_end_in_another_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    public_data.matlab(path, annotations=[{"class": 3, "fname": "x.jpg"}])
    whole = path.read_bytes()
    for place in range(128, len(whole)):
        for value in (0, 255):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                read_matlab(path)
            except DataError:
                continue


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("cifar100", "cifar-100-binary/test.bin", b"\0" * 100, r"test\.bin: 100 bytes are no whole number of rows"),
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x09", r"not an idx file of 1 dim"),
        ("aircraft", "fgvc-aircraft-2013b/data/images_variant_val.txt", b"1 Zeppelin\n", r"'Zeppelin' is none"),
        ("food101", "food-101/meta/test.json", b"[1]", r"test\.json: expected lists of pictures by class"),
        ("caltech101", "caltech101/split_zhou_Caltech101.json", b"{}", r"no list 'train'; expected train, val"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(
    root: Path, tmp_path: Path, name: str, file: str, content: bytes, message: str
) -> None:
    top = file.split("/")[0]
    shutil.copytree(root / top, tmp_path / top)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path, f"{name}/zhou" if "zhou" in file else name)


def test_benchmarks_of_the_field_are_listed_without_torch() -> None:
    wanted = {
        "mtil", "odcl-til", "odcl-cil", "x-tail", "x-tail-hash", "cifar100-b0-10", "cifar100-b0-20", "cifar100-b0-50",
        "tinyimagenet-b100-5", "tinyimagenet-b100-10", "tinyimagenet-b100-20", "imagenet100-b0-10",
        "imagenet100-b50-10", "imagenet1k-b0-10", "core50",
    }  # fmt: skip
    assert wanted <= registry.benchmarks().keys()
    assert json.dumps([card.size for card in cards().values()])
