"""Read public data sets by name (`catalog:dtd`): in their usual layout below a root, from a hub or a folder.

The result has the classes of the card, whatever the source calls them, and a column `split`. Its images are counted:
results are not comparable if some are missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.catalog.cards import RANDOM, Card, card_of, keys_of
from everclip.data.reading.columns import choose
from everclip.data.reading.formats.class_labels import labels_by_text
from everclip.data.reading.formats.completeness import Expected, check_counts, present
from everclip.data.reading.formats.layouts import arrays, imagenet, lists, matlab_labels
from everclip.data.reading.formats.layouts.common import Dataset, ImageList, Layout
from everclip.data.reading.formats.published_splits import random_sides, zhou_listed
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.rows import read_mappings
from everclip.data.reading.spec import DataSpec
from everclip.data.sampling.splits import side_of
from everclip.errors import ConfigError, DataError

VARIABLE = "EVERCLIP_DATA"
LAYOUTS: dict[str, Layout] = {**lists.LAYOUTS, **matlab_labels.LAYOUTS, **arrays.LAYOUTS, **imagenet.LAYOUTS}

ReadSource = Callable[[str], list[Raw]]
"""Reads any other source: a hub id, a folder, a file."""


def read_catalog(spec: DataSpec, source: str, base: Path | None, read_source: ReadSource) -> list[Raw]:
    """Read the data set that `catalog:NAME` names.

    Args:
        spec: the block; `place` is the folder or source of this data set, `root` that of all data sets.
        source: the name.
        base: folder that a relative root starts from.
        read_source: reads a `place` that does not have the usual layout.

    Raises:
        ConfigError: if no root is given, or the data set is not below it.
        DataError: if its files cannot be read, or some are missing.
    """
    card, rule = card_of(source)
    if spec.place is not None and not os.path.isdir(os.path.expanduser(spec.place)):
        if rule is not None:
            raise ConfigError(
                f"{source}: CoOp's split file names files of the usual layout; a data set of the hub has none."
            )
        return _with_card_classes(card, read_source(spec.place), spec, spec.place)
    root = _root(spec, base)
    dataset = _locate(card, root, spec.place)
    known = LAYOUTS[card.layout]
    if dataset is None or (rule is None and not _has_marks(dataset.folder, known)):
        if dataset is None or not any(dataset.folder.iterdir()):
            raise ConfigError(_not_found_message(card, root, spec))
        return _with_card_classes(card, read_source(str(dataset.folder)), spec, str(dataset.folder))
    if rule is None:
        listed = known.read(dataset, card)
        expected, classes = card.counts.given, card.present or len(listed.names or card.names)
    else:
        # What the split file names is complete, though it may leave a class out.
        listed = zhou_listed(dataset, card, known)
        expected = {side: listed.sides.count(side) for side in ("train", "val", "test")}
        classes = len(set(listed.labels))
    counted = Expected(card, str(dataset.folder), expected, classes)
    return [_raw(_only_present(listed, dataset), counted, dataset, spec)]


def _root(spec: DataSpec, base: Path | None) -> Path:
    given = spec.place or spec.root or os.environ.get(VARIABLE)
    if not given:
        raise ConfigError(
            f"the folder of the public data sets (catalog:NAME) is not set. Set {VARIABLE}, or "
            "scenario.root=FOLDER, to the folder that holds them in their usual layout, or scenario.places.NAME to a "
            "folder or hub:OWNER/NAME of one of them."
        )
    root = (base or Path()) / os.path.expanduser(given)
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder (from {VARIABLE} or scenario.root).")
    return root


def _locate(card: Card, root: Path, place: str | None) -> Dataset | None:
    """Return the folder of the data set: one with its usual files, else one with its usual name."""
    known = LAYOUTS[card.layout]
    folders = [root] if place is not None else []
    folders += [root / name for name in card.folders if (root / name).is_dir()]
    for folder in folders:
        if _has_marks(folder, known):
            return Dataset(folder, root)
    return Dataset(folders[0], root) if folders else None


def _has_marks(folder: Path, known: Layout) -> bool:
    return any(next(folder.glob(mark), None) is not None for mark in known.marks)


def _not_found_message(card: Card, root: Path, spec: DataSpec) -> str:
    folders = " or ".join(str(root / name) for name in card.folders[:2])
    return (
        f"{card.title} is not below {root}. Expected {folders} with {card.files}; people get it from {card.get}. Or "
        f"give scenario.places.{card.name}: a folder, a table or hub:OWNER/NAME."
    )


def _only_present(listed: ImageList, dataset: Dataset) -> ImageList:
    """Return the images whose files exist."""
    if listed.pictures is not None:
        return listed
    there = present(dataset.folder, listed.files)
    return listed if len(there) == len(listed.files) else listed.keep(there)


def _raw(listed: ImageList, counted: Expected, dataset: Dataset, spec: DataSpec) -> Raw:
    """Return the images as rows, split and counted."""
    card = counted.card
    names = listed.names or card.names
    notes = []
    if card.split == RANDOM and not any(listed.sides):
        listed.sides = random_sides(len(listed.files))
        notes += [f"{card.name}: {card.split_note}"] if card.split_note else []
    notes += check_counts(counted, listed.sides, listed.labels, spec.counts)
    keys = keys_of(names)
    columns: dict[str, list[Any]] = {
        "class_key": [keys[label] for label in listed.labels],
        "class_name": [names[label] for label in listed.labels],
        "split": _tested(listed.sides, card),
        **listed.more,
    }
    if listed.pictures is not None:
        rows = _rows(listed, columns)
        raw = read_mappings(rows, {}, card.name, None)
        return replace(raw, labels=listed.files, notes=notes, known={**raw.known, **{c: c for c in columns}})
    table = pa.table({"image": pa.array(listed.files, pa.string()), **columns})
    known = {"image": "image", **{c: c for c in ("class_key", "class_name", "split")}}
    return Raw(
        card.name, table, root=dataset.folder, root_fixed=True, known=known, labels=listed.files, notes=notes
    )


def _tested(sides: list[str | None], card: Card) -> list[str]:
    """Return the side of each image; if the test labels are secret, the validation side is the test side."""
    return ["test" if side == card.tested else str(side or "train") for side in sides]


def _rows(listed: ImageList, columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    assert listed.pictures is not None  # the caller's condition
    for i, picture in enumerate(listed.pictures()):
        yield {"image": picture, **{name: values[i] for name, values in columns.items()}}


def _with_card_classes(card: Card, raws: list[Raw], spec: DataSpec, where: str) -> list[Raw]:
    """Give rows of another layout the classes of the card, and a split if they have none.

    Raises:
        DataError: for an unknown class, or for rows without a split if the data set has its own split.
    """
    notes: list[str] = []
    found = [_relabelled(raw, card, spec, where, notes) for raw in raws]
    sides = [side for _, _, side in found]
    if all(s is None for side in sides for s in side):
        if card.split != RANDOM:
            raise DataError(
                f"{where}: no split is given, but {card.title} has one of its own. Give folders or files named train "
                "and test, or a column `split`."
            )
        order = sorted((row, part, i) for part, (raw, _, side) in enumerate(found) for i in range(len(side))
                       for row in [raw.row_name(i)])  # fmt: skip
        for (_, part, i), side in zip(order, random_sides(len(order)), strict=True):
            sides[part][i] = side
        notes.append(f"{card.name}: split at random by its rows' names, so it is not the published split")
    flat = [side for part in sides for side in part]
    labels = [label for _, part, _ in found for label in part]
    counted = Expected(card, where, card.counts.given, card.present or len(card.names))
    notes += check_counts(counted, flat, labels, spec.counts)
    return [
        _with_classes(raw, card, part, side, list(dict.fromkeys(notes)) if i == 0 else [])
        for i, (raw, part, side) in enumerate(found)
    ]


def _relabelled(
    raw: Raw, card: Card, spec: DataSpec, where: str, notes: list[str]
) -> tuple[Raw, list[int], list[str | None]]:
    """Return the rows, their labels and sides; add assumptions to `notes`."""
    chosen, _ = choose(raw.columns.schema, spec.columns, raw.known, raw.name)
    column = chosen.get("class_name") or chosen.get("class_key")
    if column is None:
        raise DataError(
            raw.unlabelled
            or f"{where}: no column holds the classes; name it with `columns: {{class_name: NAME}}`."
        )
    values = raw.columns.column(column).to_pylist()
    folder = None if where.startswith("hub:") else raw.root
    table, lines = labels_by_text(map(str, values), card, column, folder, where)
    notes += lines
    marks = (
        raw.columns.column(chosen["split"]).to_pylist() if "split" in chosen else [raw.split] * len(values)
    )
    sides = [None if mark is None else str(side_of(mark)) for mark in marks]
    return raw, [table[str(value)] for value in values], sides


def _with_classes(raw: Raw, card: Card, labels: list[int], sides: list[str | None], notes: list[str]) -> Raw:
    names, keys = card.names, card.keys
    tested = card.tested if card.tested in sides else "test"
    columns = {
        "class_key": [keys[label] for label in labels],
        "class_name": [names[label] for label in labels],
        "split": ["test" if side == tested else str(side or "train") for side in sides],
    }
    table = raw.columns
    for name, values in columns.items():
        held = pa.array(values, pa.string())
        at = table.schema.get_field_index(name)
        table = table.append_column(name, held) if at < 0 else table.set_column(at, name, held)
    known = {**raw.known, **{name: name for name in columns}}
    return replace(raw, columns=table, known=known, split=None, notes=[*raw.notes, *notes])
