"""Data sets with labels in MATLAB files: Oxford Flowers 102 and Stanford Cars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from everclip.data.catalog.cards import Card
from everclip.data.reading.formats.layouts.common import Dataset, ImageList, Layout
from everclip.data.reading.formats.matlab import read_matlab
from everclip.errors import DataError

_MOST = 1 << 31


def _flowers(dataset: Dataset, card: Card) -> ImageList:
    labels = _numbers(dataset.folder / "imagelabels.mat", "labels")
    sides = dataset.folder / "setid.mat"
    found = ImageList()
    for side, name in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        for number in _numbers(sides, name):
            if not 1 <= number <= len(labels):
                raise DataError(f"{sides}: {name} names image {number} of {len(labels)}.")
            label = _from_one(labels[number - 1], card, dataset.folder / "imagelabels.mat")
            found.add(f"jpg/image_{number:05d}.jpg", label, side)
    return found


def _cars(dataset: Dataset, card: Card) -> ImageList:
    found = ImageList()
    for side, name in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        path = dataset.folder / name
        path = path if path.is_file() else dataset.folder / "devkit" / name
        for row in _rows(path):
            label = _from_one(_whole(row["class"], f"{path}: class")[0], card, path)
            found.add(f"cars_{side}/{row['fname']}", label, side)
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = read_matlab(path).get("annotations")
    if not isinstance(rows, list) or not all(
        isinstance(r, dict) and "class" in r and isinstance(r.get("fname"), str) for r in rows
    ):
        raise DataError(
            f"{path}: expected the structs `annotations` with the fields `class` and `fname` (a text)."
        )
    return rows


def _numbers(path: Path, name: str) -> list[int]:
    held = read_matlab(path)
    if not isinstance(held.get(name), np.ndarray):
        raise DataError(f"{path}: expected the numbers `{name}`; found {', '.join(held) or 'nothing'}.")
    return _whole(held[name], f"{path}: {name}")


def _whole(values: Any, where: str) -> list[int]:
    """Return at least one whole number, as a list."""
    found = np.asarray(values).ravel()
    if not found.size or found.dtype.kind not in "iuf" or not np.array_equal(found, np.trunc(found)):
        raise DataError(f"{where}: expected whole numbers; found {str(values)[:80]!r}.")
    if np.abs(found.astype(np.float64)).max() > _MOST:
        raise DataError(f"{where}: expected numbers up to {_MOST:,}; found {str(values)[:80]!r}.")
    return [int(number) for number in found]


def _from_one(number: int, card: Card, path: Path) -> int:
    if not 1 <= number <= len(card.names):
        raise DataError(f"{path}: the class {number} is not among 1 to {len(card.names)}.")
    return number - 1


LAYOUTS = {
    "flowers": Layout(("imagelabels.mat",), _flowers),
    "cars": Layout(("devkit/cars_train_annos.mat", "cars_train_annos.mat"), _cars),
}
