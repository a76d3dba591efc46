"""ImageNet and its relatives: folders by wnid, Tiny ImageNet, V2, R, A, Sketch, ObjectNet; and CORe50."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from everclip.data.catalog.cards import Card, cards
from everclip.data.reading.formats.layouts.listed import (
    Known,
    Listed,
    Place,
    folders,
    json_of,
    lines,
    number_of,
    pictures,
    plain,
)
from everclip.errors import DataError

ALL = 1000
_CORE50_TESTED = ("3", "7", "10")
_CORE50_OBJECTS = 5


def _imagenet(place: Place, card: Card) -> Listed:
    labels = {wnid: i for i, wnid in enumerate(wnids(place)) if i < len(card.names)}
    found = Listed()
    for side in ("train", "val"):
        if (place.folder / side).is_dir():
            _add_wnids(found, place.folder, f"{side}/", labels, side)
    return found


def _shift(place: Place, card: Card) -> Listed:
    labels = {wnid: i for i, wnid in enumerate(wnids(place))}
    found = Listed()
    _add_wnids(found, place.folder, "", labels, "test")
    return found


def _add_wnids(found: Listed, folder: Path, inner: str, labels: dict[str, int], side: str) -> None:
    for wnid in folders(folder / inner):
        if wnid in labels:
            for file in pictures(folder / inner / wnid):
                found.add(f"{inner}{wnid}/{file}", labels[wnid], side)


def wnids(place: Place) -> list[str]:
    """Return the wnids of ImageNet-1K in label order: from a list, else the names of its 1,000 training folders.

    Raises:
        DataError: if neither is there.
    """
    homes = [place.folder, *(place.root / name for name in cards()["imagenet"].folders)]
    for home in homes:
        for name in ("wnids.txt", "LOC_synset_mapping.txt"):
            if (home / name).is_file():
                found = [line.split()[0] for line in lines(home / name)]
                if len(found) == ALL:
                    return found
                raise DataError(
                    f"{home / name}: holds {len(found):,} wnids, expected {ALL:,} in label order."
                )
    for home in (h / inner for h in homes for inner in ("train", "")):
        found = [f for f in folders(home) if re.fullmatch(r"n\d{8}", f)] if home.is_dir() else []
        if len(found) == ALL:
            return found
    raise DataError(
        f"{place.folder}: the wnids of ImageNet in label order are not known. Give wnids.txt (one per line, {ALL:,}) "
        f"or LOC_synset_mapping.txt here or in {place.root / 'imagenet'}, or all {ALL:,} training folders."
    )


def _tiny(place: Place, card: Card) -> Listed:
    """Labels are places in `wnids.txt`; its validation pictures are the ones that are measured."""
    named = place.folder / "wnids.txt"
    labels = {line.strip(): i for i, line in enumerate(lines(named))}
    if len(labels) > len(card.names):
        raise DataError(f"{named}: {len(labels):,} wnids; {card.title} has {len(card.names)}.")
    found = Listed()
    for wnid in folders(place.folder / "train"):
        inner = f"train/{wnid}/images"
        if wnid in labels and (place.folder / inner).is_dir():
            for file in pictures(place.folder / inner):
                found.add(f"{inner}/{file}", labels[wnid], "train")
    path = place.folder / "val" / "val_annotations.txt"
    for line in lines(path):
        file, _, more = line.partition("\t")
        wnid = more.partition("\t")[0]
        if wnid not in labels:
            raise DataError(f"{path}: {wnid!r} (of {file}) does not stand in wnids.txt.")
        found.add(f"val/images/{file}", labels[wnid], "val")
    return found


def _v2(place: Place, card: Card) -> Listed:
    found = Listed()
    numbers = {name: number_of(name) for name in folders(place.folder)}
    for label, name in sorted((number, name) for name, number in numbers.items() if number is not None):
        if label >= ALL:
            raise DataError(f"{place.folder}: the folder {name} is no label of ImageNet (0 to {ALL - 1}).")
        for file in pictures(place.folder / name):
            found.add(f"{name}/{file}", label, "test")
    return found


def _objectnet(place: Place, card: Card) -> Listed:
    """The classes that ImageNet has too, by the maps that come with the data."""
    maps = place.folder / "mappings"
    called = _map(maps / "folder_to_objectnet_label.json")
    shared = {plain(name) for name in _map(maps / "objectnet_to_imagenet_1k.json")}
    kept = {folder: str(name) for folder, name in called.items() if plain(str(name)) in shared}
    names = tuple(sorted(set(kept.values())))
    found = Listed(names=names)
    for folder in folders(place.folder / "images"):
        if folder in kept:
            for file in pictures(place.folder / "images" / folder):
                found.add(f"images/{folder}/{file}", names.index(kept[folder]), "test")
    return found


def _map(path: Path) -> dict[str, Any]:
    found = json_of(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a mapping, found {type(found).__name__}.")
    return found


def _core50(place: Place, card: Card) -> Listed:
    found = Listed(more={"session": []})
    for name in sorted(folders(place.folder), key=lambda n: (len(n), n)):
        session = name.removeprefix("s")
        if not name.startswith("s") or number_of(session) is None:
            continue
        for thing in folders(place.folder / name):
            number = number_of(thing.removeprefix("o"))
            if number is None or not 1 <= number <= _CORE50_OBJECTS * len(card.names):
                raise DataError(
                    f"{place.folder / name / thing}: expected o1 to o{_CORE50_OBJECTS * len(card.names)}."
                )
            for file in pictures(place.folder / name / thing):
                side = "test" if session in _CORE50_TESTED else "train"
                found.add(f"{name}/{thing}/{file}", (number - 1) // _CORE50_OBJECTS, side)
                found.more["session"].append(session)
    return found


LAYOUTS = {
    "imagenet": Known(("train/n[0-9]*", "val/n[0-9]*"), _imagenet),
    "imagenet_shift": Known(("n[0-9]*",), _shift),
    "imagenet_v2": Known(("0",), _v2),
    "tinyimagenet": Known(("wnids.txt",), _tiny),
    "objectnet": Known(("mappings/folder_to_objectnet_label.json",), _objectnet),
    "core50": Known(("s1",), _core50),
}
