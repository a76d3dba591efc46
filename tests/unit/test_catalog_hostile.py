"""Public data sets whose own files are damaged or hostile: the error names the file, and memory stays bounded."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

import public_data
from everclip.data.reading.formats import matlab
from everclip.data.reading.formats.layouts import arrays
from everclip.data.reading.formats.matlab import read_matlab
from everclip.errors import DataError
from public_data import load

RAW = "MNIST/raw"
ZHOU = "caltech101/split_zhou_Caltech101.json"
IMAGES = f"{RAW}/train-images-idx3-ubyte"
LABELS = f"{RAW}/train-labels-idx1-ubyte"
CARS = "stanford_cars/devkit/cars_train_annos.mat"


@pytest.fixture
def copy(public_root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a data set into a root of the test's own."""

    def make(top: str) -> Path:
        shutil.copytree(public_root / top, tmp_path / top)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("caltech101/zhou", ZHOU, b"[" * 200_000, r"Caltech101\.json: cannot be read as JSON"),
        ("caltech101/zhou", ZHOU, b'{"train": [["Faces/a.jpg", Infinity, "x"]]}', r"train: expected rows of"),
        ("food101", "food-101/meta/train.json", b"[" * 200_000, r"train\.json: cannot be read as JSON"),
        ("mnist", IMAGES, struct.pack(">4I", 0x803, 1 << 31, 1 << 31, 4), r"idx3-ubyte: not an idx file"),
        ("mnist", IMAGES, struct.pack(">4I", 0x803, 3, 0, 28), r"idx3-ubyte: not an idx file"),
        ("dtd", "dtd/dtd/labels/train1.txt", "²/x.jpg".encode(), r"'²' is none of the 47 classes"),
        ("dtd", "dtd/dtd/labels/train1.txt", b"9" * 5000 + b"/x.jpg", r"is none of the 47 classes"),
    ],
)  # fmt: skip
def test_hostile_files_are_errors_that_name_them(
    copy: Callable[[str], Path], name: str, file: str, content: bytes, message: str
) -> None:
    root = copy(file.split("/")[0])
    (root / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(root, name)


@pytest.mark.parametrize("row", ["\0/banded/y.jpg", "../../../../etc/banded/passwd", "/etc/banded/hostname"])
def test_a_listed_path_that_is_none_or_leaves_the_folder_counts_as_missing(
    copy: Callable[[str], Path], row: str
) -> None:
    root = copy("dtd")
    whole = len(load(root, "dtd"))
    path = root / "dtd" / "dtd" / "labels" / "train1.txt"
    path.write_text(path.read_text() + row)
    assert len(load(root, "dtd")) == whole


def test_labels_that_are_no_classes_are_named_with_their_file(copy: Callable[[str], Path]) -> None:
    root = copy("MNIST")
    (root / IMAGES).write_bytes(struct.pack(">4I", 0x803, 1, 2, 2) + b"1234")
    (root / LABELS).write_bytes(struct.pack(">2I", 0x801, 1) + b"\xc8")
    with pytest.raises(DataError, match=r"labels-idx1-ubyte: holds the class 200; MNIST has 10"):
        load(root, "mnist")


def test_no_more_is_unpacked_than_the_head_of_an_idx_file_says(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy("MNIST")
    taken: list[int] = []

    class Watched(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            taken.append(-1 if size is None else size)
            return super().read(size)

    monkeypatch.setattr(arrays.gzip, "open", lambda path: Watched(path))
    (root / IMAGES).unlink()
    head = struct.pack(">4I", 0x803, 2, 4, 4)
    (root / f"{IMAGES}.gz").write_bytes(gzip.compress(head + b"\0" * 1_000_000))
    with pytest.raises(DataError, match="not an idx file of 3 dimensions"):
        load(root, "mnist")
    assert taken == [16, 33]


@pytest.mark.parametrize("labels", [float("nan"), float("inf"), 1.5, -1, "three", []])
def test_classes_that_are_no_whole_numbers_are_refused(copy: Callable[[str], Path], labels: object) -> None:
    root = copy("stanford_cars")
    public_data.matlab(root / CARS, annotations=[{"class": labels, "fname": "a.jpg"}])
    with pytest.raises(DataError, match=r"cars_train_annos\.mat: (class: expected|the class -1)"):
        load(root, "cars")


def test_a_picture_without_a_name_of_text_is_refused(copy: Callable[[str], Path]) -> None:
    root = copy("stanford_cars")
    public_data.matlab(root / CARS, annotations=[{"class": 1, "fname": 3}])
    with pytest.raises(DataError, match=r"the fields `class` and `fname` \(a text\)"):
        load(root, "cars")


def test_empty_cells_and_fields_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of kilobytes may unpack to millions of empty cells, or of names."""
    path = tmp_path / "a.mat"

    def write(kind: int, shape: tuple[int, int], rest: bytes) -> None:
        head = public_data.part(6, struct.pack("<II", kind, 0))
        head += public_data.part(5, struct.pack("<ii", *shape)) + public_data.part(1, b"x")
        packed = zlib.compress(public_data.part(14, head + rest))
        start = b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
        path.write_bytes(start + struct.pack("<II", 15, len(packed)) + packed)

    write(1, (1, 5_000), struct.pack("<II", 14, 0) * 5_000)
    assert len(read_matlab(path)["x"]) == 5_000
    monkeypatch.setattr(matlab, "MOST_ARRAYS", 5_000)
    with pytest.raises(DataError, match="more than 5,000 arrays"):
        read_matlab(path)
    monkeypatch.setattr(matlab, "_FIELDS", 10)
    write(2, (1, 0), struct.pack("<HHi", 5, 4, 1) + public_data.part(1, b"a" * 11))
    with pytest.raises(DataError, match="more than 10 of them"):
        read_matlab(path)


def test_names_that_are_not_utf8_are_said(copy: Callable[[str], Path]) -> None:
    root = copy("eurosat")
    folder = root / "eurosat" / "2750"
    place = next(p for p in folder.iterdir() if any(p.iterdir()))
    shutil.copy(next(place.iterdir()), os.fsencode(place) + b"/caf\xe9.jpg")
    with pytest.raises(DataError, match=r"'caf\\udce9\.jpg' is not UTF-8; rename it"):
        load(root, "eurosat")


def test_odd_folders_and_lines_of_imagenet_and_its_kin(tmp_path: Path) -> None:
    public_data.tinyimagenet(tmp_path, 4)
    folder = tmp_path / "tiny-imagenet-200"
    notes = folder / "val" / "val_annotations.txt"
    whole = notes.read_text()
    notes.write_text(whole + "val_9.JPEG")
    with pytest.raises(DataError, match=r"val_annotations\.txt: '' \(of val_9\.JPEG\)"):
        load(tmp_path, "tinyimagenet")
    notes.write_text(whole)
    public_data.write_lines(folder / "wnids.txt", public_data.WNIDS[:201])
    with pytest.raises(DataError, match=r"wnids\.txt: 201 wnids; Tiny ImageNet has 200"):
        load(tmp_path, "tinyimagenet")
    public_data.core50(tmp_path, 2)
    public_data.draw(tmp_path / "core50_128x128" / "s1" / "o²" / "a.png")
    with pytest.raises(DataError, match="expected o1 to o50"):
        load(tmp_path, "core50")
