"""Data sets with classes in folder names or text files: Caltech101, EuroSAT, SUN397, DTD, Food-101, Aircraft, Pets."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from everclip.data.catalog.cards import Card
from everclip.data.reading.formats.layouts.common import (
    Dataset,
    ImageList,
    Layout,
    folders,
    json_of,
    lines,
    pictures,
    require_label,
)
from everclip.errors import DataError

_IGNORED = ("BACKGROUND_Google",)


def _class_folders(inner: str) -> Layout:
    """Return a layout of class folders in published order: sorted by name, capitals first, then by file."""

    def read(dataset: Dataset, card: Card) -> ImageList:
        found = ImageList()
        for name in folders(dataset.folder / inner):
            if name in _IGNORED:
                continue
            label = require_label(name, card, dataset.folder / inner)
            for file in pictures(dataset.folder / inner / name):
                found.add(f"{inner}/{name}/{file}", label, None)
        return found

    return Layout((inner,), read, _by_folder)


def _by_folder(path: str, card: Card) -> int:
    return require_label(PurePosixPath(path).parent.name, card, path)


def _sun(dataset: Dataset, card: Card) -> ImageList:
    """Read `a/abbey/*.jpg` and `a/apartment_building/outdoor/*.jpg`; the published order of the files is not known."""
    found = ImageList()
    for letter in folders(dataset.folder):
        if len(letter) > 1:
            continue
        for name in folders(dataset.folder / letter):
            deeper = [f"{letter}/{name}/{inner}" for inner in folders(dataset.folder / letter / name)]
            for folder in deeper or [f"{letter}/{name}"]:
                label = _sun_label(f"{folder}/x", card)
                for file in pictures(dataset.folder / folder):
                    found.add(f"{folder}/{file}", label, None)
    order = sorted(range(len(found.files)), key=lambda i: (found.labels[i], found.files[i]))
    return found.keep(order)


def _sun_label(path: str, card: Card) -> int:
    return require_label("/".join(PurePosixPath(path).parts[1:-1]), card, path)


def _dtd(dataset: Dataset, card: Card) -> ImageList:
    found = ImageList()
    for side in ("train", "val", "test"):
        for line in lines(dataset.folder / "labels" / f"{side}1.txt"):
            found.add(f"images/{line.strip()}", _by_folder(line.strip(), card), side)
    return found


def _food(dataset: Dataset, card: Card) -> ImageList:
    found = ImageList()
    for side in ("train", "test"):
        for name in _food_names(dataset.folder / "meta", side):
            found.add(f"images/{name}.jpg", _by_folder(name, card), side)
    return found


def _food_names(meta: Path, side: str) -> list[str]:
    """Return `apple_pie/1005649`... from `train.json` (lists by class), else from `train.txt`."""
    path = meta / f"{side}.json"
    if not path.is_file():
        return [line.strip() for line in lines(meta / f"{side}.txt")]
    listed = json_of(path)
    try:
        return [str(name) for names in listed.values() for name in names]
    except (AttributeError, TypeError) as error:
        raise DataError(f"{path}: expected lists of images by class ({error}).") from error


def _aircraft(dataset: Dataset, card: Card) -> ImageList:
    found = ImageList()
    for side in ("train", "val", "test"):
        path = dataset.folder / f"images_variant_{side}.txt"
        for line in lines(path):
            number, _, name = line.strip().partition(" ")
            found.add(f"images/{number}.jpg", require_label(name, card, path), side)
    return found


def _pets(dataset: Dataset, card: Card) -> ImageList:
    found = ImageList()
    for side, name in (("train", "trainval"), ("test", "test")):
        for line in lines(dataset.folder / "annotations" / f"{name}.txt"):
            if not line.startswith("#"):
                file = f"{line.split()[0]}.jpg"
                found.add(f"images/{file}", _pet(file, card), side)
    return found


def _pet(path: str, card: Card) -> int:
    """Return the breed in a file name such as `images/great_pyrenees_12.jpg`."""
    return require_label(PurePosixPath(path).stem.rpartition("_")[0], card, path)


LAYOUTS = {
    "caltech101": _class_folders("101_ObjectCategories"),
    "eurosat": _class_folders("2750"),
    "sun397": Layout(("a",), _sun, _sun_label),
    "dtd": Layout(("labels/train1.txt",), _dtd, _by_folder),
    "food101": Layout(("meta/train.json", "meta/train.txt"), _food, _by_folder),
    "aircraft": Layout(("images_variant_train.txt",), _aircraft),
    "pets": Layout(("annotations/trainval.txt",), _pets, _pet),
}
