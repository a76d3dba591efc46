"""Published splits: torch's seeded permutation, and the split files of CoOp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everclip.data.catalog.cards import Card
from everclip.data.reading.formats.layouts.common import Dataset, ImageList, Layout, json_of
from everclip.errors import ConfigError, DataError

SEED = 42
SHARE = 0.8


def random_sides(count: int) -> list[str | None]:
    """Return the sides of `random-80-20@42`: the first `int(0.8 n)` of torch's permutation with seed 42 train."""
    import torch

    order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED)).tolist()
    sides: list[str | None] = ["test"] * count
    for position in order[: int(SHARE * count)]:
        sides[position] = "train"
    return sides


def zhou_listed(dataset: Dataset, card: Card, known: Layout) -> ImageList:
    """Return the images of a split file of CoOp: lists of (path, label, class name) for train, val and test.

    Its labels are used: it may leave a class out (Caltech101's second face class). If the path contains the class, the
    path is used instead, since the numbers of the file have gaps then.

    Raises:
        ConfigError: if the file does not exist.
        DataError: if it has another form.
    """
    assert card.zhou is not None  # card_of has seen to it
    path = _file(dataset, card)
    held = json_of(path)
    folder = dataset.folder / card.zhou.images
    inner = card.zhou.images if folder.is_dir() and card.zhou.images != "." else ""
    found = ImageList()
    for side in ("train", "val", "test"):
        for row in _rows(held, side, path):
            file = f"{inner}/{row[0]}" if inner else row[0]
            label = row[1] if known.label is None else known.label(row[0], card)
            if not 0 <= label < len(card.names):
                raise DataError(
                    f"{path}: {row[0]!r} has the label {label}; {card.title} has {len(card.names)}."
                )
            found.add(file, label, side)
    return found


def _file(dataset: Dataset, card: Card) -> Path:
    assert card.zhou is not None  # the caller's condition
    homes = (dataset.folder, dataset.folder.parent, dataset.root)
    for home in homes:
        if (home / card.zhou.file).is_file():
            return home / card.zhou.file
    raise ConfigError(
        f"{card.title}: {card.zhou.file} is in none of {', '.join(dict.fromkeys(map(str, homes)))}. CoOp's authors "
        "publish it (github.com/KaiyangZhou/CoOp, DATASETS.md); the benchmark x-tail-hash does without."
    )


def _rows(held: Any, side: str, path: Path) -> list[tuple[str, int, str]]:
    rows = held.get(side) if isinstance(held, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{path}: no list {side!r}; expected train, val and test.")
    try:
        return [(str(file), int(label), str(name)) for file, label, name in rows]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: {side}: expected rows of (path, label, class name) ({error}).") from error
