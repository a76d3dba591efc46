"""ImageNet and its relatives: folders by wnid, Tiny ImageNet, V2, R, A, Sketch, ObjectNet; and CORe50."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from everclip.data.catalog.cards import Card, cards
from everclip.data.reading.formats.layouts.common import (
    Dataset,
    ImageList,
    Layout,
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


def _imagenet(dataset: Dataset, card: Card) -> ImageList:
    labels = {wnid: i for i, wnid in enumerate(wnids(dataset)) if i < len(card.names)}
    found = ImageList()
    for side in ("train", "val"):
        if (dataset.folder / side).is_dir():
            _add_wnids(found, dataset.folder, f"{side}/", labels, side)
    return found


def _shift(dataset: Dataset, card: Card) -> ImageList:
    labels = {wnid: i for i, wnid in enumerate(wnids(dataset))}
    found = ImageList()
    _add_wnids(found, dataset.folder, "", labels, "test")
    return found


def _add_wnids(found: ImageList, folder: Path, inner: str, labels: dict[str, int], side: str) -> None:
    for wnid in folders(folder / inner):
        if wnid in labels:
            for file in pictures(folder / inner / wnid):
                found.add(f"{inner}{wnid}/{file}", labels[wnid], side)


def wnids(dataset: Dataset) -> list[str]:
    """Return the wnids of ImageNet-1K in label order: from a list, else the names of its 1,000 training folders.

    Raises:
        DataError: if neither exists.
    """
    homes = [dataset.folder, *(dataset.root / name for name in cards()["imagenet"].folders)]
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
        f"{dataset.folder}: the wnids of ImageNet in label order are not known. Give wnids.txt (one per line, {ALL:,}) "
        f"or LOC_synset_mapping.txt here or in {dataset.root / 'imagenet'}, or all {ALL:,} training folders."
    )


def _tiny(dataset: Dataset, card: Card) -> ImageList:
    """Read Tiny ImageNet: labels are positions in `wnids.txt`; the validation images are the test side."""
    named = dataset.folder / "wnids.txt"
    labels = {line.strip(): i for i, line in enumerate(lines(named))}
    if len(labels) > len(card.names):
        raise DataError(f"{named}: {len(labels):,} wnids; {card.title} has {len(card.names)}.")
    found = ImageList()
    for wnid in folders(dataset.folder / "train"):
        inner = f"train/{wnid}/images"
        if wnid in labels and (dataset.folder / inner).is_dir():
            for file in pictures(dataset.folder / inner):
                found.add(f"{inner}/{file}", labels[wnid], "train")
    path = dataset.folder / "val" / "val_annotations.txt"
    for line in lines(path):
        file, _, more = line.partition("\t")
        wnid = more.partition("\t")[0]
        if wnid not in labels:
            raise DataError(f"{path}: {wnid!r} (of {file}) is not in wnids.txt.")
        found.add(f"val/images/{file}", labels[wnid], "val")
    return found


def _v2(dataset: Dataset, card: Card) -> ImageList:
    found = ImageList()
    numbers = {name: number_of(name) for name in folders(dataset.folder)}
    for label, name in sorted((number, name) for name, number in numbers.items() if number is not None):
        if label >= ALL:
            raise DataError(f"{dataset.folder}: the folder {name} is no label of ImageNet (0 to {ALL - 1}).")
        for file in pictures(dataset.folder / name):
            found.add(f"{name}/{file}", label, "test")
    return found


def _objectnet(dataset: Dataset, card: Card) -> ImageList:
    """Read ObjectNet: only the classes that ImageNet has, too, by the mappings of the data set."""
    maps = dataset.folder / "mappings"
    called = _map(maps / "folder_to_objectnet_label.json")
    shared = {plain(name) for name in _map(maps / "objectnet_to_imagenet_1k.json")}
    kept = {folder: str(name) for folder, name in called.items() if plain(str(name)) in shared}
    names = tuple(sorted(set(kept.values())))
    found = ImageList(names=names)
    for folder in folders(dataset.folder / "images"):
        if folder in kept:
            for file in pictures(dataset.folder / "images" / folder):
                found.add(f"images/{folder}/{file}", names.index(kept[folder]), "test")
    return found


def _map(path: Path) -> dict[str, Any]:
    found = json_of(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a mapping, found {type(found).__name__}.")
    return found


def _core50(dataset: Dataset, card: Card) -> ImageList:
    found = ImageList(more={"session": []})
    for name in sorted(folders(dataset.folder), key=lambda n: (len(n), n)):
        session = name.removeprefix("s")
        if not name.startswith("s") or number_of(session) is None:
            continue
        for thing in folders(dataset.folder / name):
            number = number_of(thing.removeprefix("o"))
            if number is None or not 1 <= number <= _CORE50_OBJECTS * len(card.names):
                raise DataError(
                    f"{dataset.folder / name / thing}: expected o1 to o{_CORE50_OBJECTS * len(card.names)}."
                )
            for file in pictures(dataset.folder / name / thing):
                side = "test" if session in _CORE50_TESTED else "train"
                found.add(f"{name}/{thing}/{file}", (number - 1) // _CORE50_OBJECTS, side)
                found.more["session"].append(session)
    return found


LAYOUTS = {
    "imagenet": Layout(("train/n[0-9]*", "val/n[0-9]*"), _imagenet),
    "imagenet_shift": Layout(("n[0-9]*",), _shift),
    "imagenet_v2": Layout(("0",), _v2),
    "tinyimagenet": Layout(("wnids.txt",), _tiny),
    "objectnet": Layout(("mappings/folder_to_objectnet_label.json",), _objectnet),
    "core50": Layout(("s1",), _core50),
}
