"""Data sets whose folders or text files say the class: Caltech101, EuroSAT, SUN397, DTD, Food-101, Aircraft, Pets."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from everclip.data.catalog.cards import Card
from everclip.data.reading.formats.layouts.listed import (
    Known,
    Listed,
    Place,
    folders,
    json_of,
    lines,
    pictures,
    require_label,
)
from everclip.errors import DataError

_IGNORED = ("BACKGROUND_Google",)


def _class_folders(inner: str) -> Known:
    """Class folders in published order: sorted by name, capitals first, and by file within."""

    def read(place: Place, card: Card) -> Listed:
        found = Listed()
        for name in folders(place.folder / inner):
            if name in _IGNORED:
                continue
            label = require_label(name, card, place.folder / inner)
            for file in pictures(place.folder / inner / name):
                found.add(f"{inner}/{name}/{file}", label, None)
        return found

    return Known((inner,), read, _by_folder)


def _by_folder(path: str, card: Card) -> int:
    return require_label(PurePosixPath(path).parent.name, card, path)


def _sun(place: Place, card: Card) -> Listed:
    """Read `a/abbey/*.jpg` and `a/apartment_building/outdoor/*.jpg`; the published order of the files is not known."""
    found = Listed()
    for letter in folders(place.folder):
        if len(letter) > 1:
            continue
        for name in folders(place.folder / letter):
            deeper = [f"{letter}/{name}/{inner}" for inner in folders(place.folder / letter / name)]
            for folder in deeper or [f"{letter}/{name}"]:
                label = _sun_label(f"{folder}/x", card)
                for file in pictures(place.folder / folder):
                    found.add(f"{folder}/{file}", label, None)
    order = sorted(range(len(found.files)), key=lambda i: (found.labels[i], found.files[i]))
    return found.keep(order)


def _sun_label(path: str, card: Card) -> int:
    return require_label("/".join(PurePosixPath(path).parts[1:-1]), card, path)


def _dtd(place: Place, card: Card) -> Listed:
    found = Listed()
    for side in ("train", "val", "test"):
        for line in lines(place.folder / "labels" / f"{side}1.txt"):
            found.add(f"images/{line.strip()}", _by_folder(line.strip(), card), side)
    return found


def _food(place: Place, card: Card) -> Listed:
    found = Listed()
    for side in ("train", "test"):
        for name in _food_names(place.folder / "meta", side):
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
        raise DataError(f"{path}: expected lists of pictures by class ({error}).") from error


def _aircraft(place: Place, card: Card) -> Listed:
    found = Listed()
    for side in ("train", "val", "test"):
        path = place.folder / f"images_variant_{side}.txt"
        for line in lines(path):
            number, _, name = line.strip().partition(" ")
            found.add(f"images/{number}.jpg", require_label(name, card, path), side)
    return found


def _pets(place: Place, card: Card) -> Listed:
    found = Listed()
    for side, name in (("train", "trainval"), ("test", "test")):
        for line in lines(place.folder / "annotations" / f"{name}.txt"):
            if not line.startswith("#"):
                file = f"{line.split()[0]}.jpg"
                found.add(f"images/{file}", _pet(file, card), side)
    return found


def _pet(path: str, card: Card) -> int:
    """Return the breed that `images/great_pyrenees_12.jpg` is called by."""
    return require_label(PurePosixPath(path).stem.rpartition("_")[0], card, path)


LAYOUTS = {
    "caltech101": _class_folders("101_ObjectCategories"),
    "eurosat": _class_folders("2750"),
    "sun397": Known(("a",), _sun, _sun_label),
    "dtd": Known(("labels/train1.txt",), _dtd, _by_folder),
    "food101": Known(("meta/train.json", "meta/train.txt"), _food, _by_folder),
    "aircraft": Known(("images_variant_train.txt",), _aircraft),
    "pets": Known(("annotations/trainval.txt",), _pets, _pet),
}
