"""Map the class names or numbers of a hub data set or a table to the labels of a public data set.

A number is a class only together with an order. `datasets` writes the names of a `ClassLabel` into the schema of
Parquet files, or beside them into `README.md` or `dataset_info.json`; if they exist, they decide.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from everclip.data.catalog.cards import Card
from everclip.data.reading.formats.layouts.common import label_of, named_label, number_of, plain
from everclip.errors import DataError

_FILES = ("README.md", "dataset_info.json", "dataset_infos.json")
_MOST_BYTES = 1 << 24
_UPWARDS = 2


def labels_by_text(
    texts: Iterable[str], card: Card, column: str, folder: Path | None, where: str
) -> tuple[dict[str, int], list[str]]:
    """Return the label of each text of a column, and a line if the order of numbers is assumed.

    Args:
        texts: the values of the column.
        card: the data set.
        column: its name in the source.
        folder: of the table; files there may declare names.
        where: the source, for messages.

    Raises:
        DataError: for an unknown class.
    """
    every = sorted(set(texts))
    numbers = [text for text in every if _is_bare_number(text, card)]
    orders = declared_orders(folder, column) if numbers and folder is not None else set()
    names = next(iter(orders)) if len(orders) == 1 else None
    found: dict[str, int] = {}
    for text in every:
        class_name = names[int(text)] if names and text in numbers and int(text) < len(names) else text
        label = (
            _declared_label(class_name, int(text), card)
            if names and text in numbers
            else label_of(text, card)
        )
        if label is None:
            raise DataError(
                f"{where}: the class {class_name!r} is none of the {len(card.names):,} of {card.title} "
                f"({', '.join(card.names[:3])}...); expected its names, or its labels as numbers."
            )
        found[text] = label
    if not numbers or names:
        return found, []
    first = numbers[0]
    why = (
        "the files beside the rows name them in different orders"
        if orders
        else "nothing beside the rows says so"
    )
    return found, [
        f"{card.name}: classes are numbers in column {column!r}, assumed to be in the order of the data set's labels "
        f"({first} = {card.names[found[first]]}); {why}"
    ]


def _declared_label(name: str, number: int, card: Card) -> int | None:
    """Return the label of a declared name; if two classes have the name, the one at the number."""
    same = number < len(card.names) and plain(name) == plain(card.names[number])
    return number if same else named_label(name, card)


def _is_bare_number(text: str, card: Card) -> bool:
    """Whether a text is a number and not a class name, as the digits of MNIST are."""
    number = number_of(text)
    if number is None or named_label(text, card) is not None:
        return False
    return not (number < len(card.names) and card.names[number].split()[0] == str(number))


def declared_orders(folder: Path, column: str) -> set[tuple[str, ...]]:
    """Return the names in the order of a column's numbers, as files of `datasets` beside a table declare them.

    Looks in the folder and above, since tables are often in `data/`. If configurations differ, several orders are
    returned, and none is used.
    """
    for place in (folder, *list(folder.parents)[:_UPWARDS]):
        found = {
            names
            for file in _FILES
            for features in _features(place / file)
            if (names := _names(features, column))
        }
        if found:
            return found
    return set()


def _features(path: Path) -> Iterator[Any]:
    """Yield the features of every configuration that a file declares."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            held = json.loads(text)
        else:
            head = text.split("---", 2)
            held = yaml.safe_load(head[1]) if len(head) == 3 and not head[0].strip() else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return  # no such file, or not of `datasets`: nothing is declared, and the caller reports it
    if not isinstance(held, Mapping):
        return
    infos = held.get("dataset_info", held if "features" in held else list(held.values()))
    for info in infos if isinstance(infos, list) else [infos]:
        if isinstance(info, Mapping):
            yield info.get("features")


def _names(features: Any, column: str) -> tuple[str, ...] | None:
    """Return the names of a class label; in YAML features are a list, in JSON a mapping."""
    if isinstance(features, list):
        named = [f for f in features if isinstance(f, Mapping) and isinstance(f.get("name"), str)]
        features = {f["name"]: f.get("dtype") for f in named}
    feature = features.get(column) if isinstance(features, Mapping) else None
    if isinstance(feature, Mapping):
        feature = feature.get("class_label", feature)
    names = feature.get("names") if isinstance(feature, Mapping) else None
    if isinstance(names, Mapping):
        names = [names.get(key, names.get(str(key))) for key in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(n, str | int) for n in names):
        return None
    return tuple(map(str, names))
