"""What a layout gives, and small helpers that layouts share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everclip.data.catalog.cards import Card
from everclip.data.reading.formats.foreign import is_foreign_file, is_foreign_folder
from everclip.data.reading.formats.raw import IMAGE_ENDINGS
from everclip.errors import DataError


@dataclass
class Listed:
    """The pictures of a data set as its own files name them.

    Attributes:
        files: paths within the folder, or what to call pictures that are no files.
        labels: the class of each.
        sides: `train`, `val` or `test` of each; `None` where the data set has no split of its own.
        more: further columns.
        pictures: encoded pictures in the order of `files`, where they are no files.
        names: class names that the data set's own files bring.
    """

    files: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    sides: list[str | None] = field(default_factory=list)
    more: dict[str, list[str]] = field(default_factory=dict)
    pictures: Callable[[], Iterable[bytes]] | None = None
    names: tuple[str, ...] | None = None

    def add(self, file: str, label: int, side: str | None) -> None:
        """Add a picture."""
        self.files.append(file)
        self.labels.append(label)
        self.sides.append(side)

    def keep(self, wanted: Iterable[int]) -> Listed:
        """Return the pictures at some places; they must be files."""
        at = list(wanted)
        return Listed(
            [self.files[i] for i in at],
            [self.labels[i] for i in at],
            [self.sides[i] for i in at],
            {name: [values[i] for i in at] for name, values in self.more.items()},
            None,
            self.names,
        )


@dataclass(frozen=True)
class Place:
    """Where a data set lies.

    Attributes:
        folder: its own.
        root: that of all data sets.
    """

    folder: Path
    root: Path


_DIGITS = 9

Layout = Callable[[Place, Card], Listed]


@dataclass(frozen=True)
class Known:
    """A layout: the files or folders any of which tell it, how to read it, and the label that a path says."""

    marks: tuple[str, ...]
    read: Layout
    label: Callable[[str, Card], int] | None = None


def lines(path: Path) -> list[str]:
    """Return the lines of a text file that hold something.

    Raises:
        DataError: if it cannot be read as UTF-8 text.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}).") from error


def json_of(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataError: if it cannot be read as JSON, or is nested too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from error


def folders(path: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted."""
    try:
        return sorted(e.name for e in os.scandir(path) if e.is_dir() and not is_foreign_folder(e.name))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def pictures(path: Path) -> list[str]:
    """Return the names of the pictures in a folder, sorted.

    Raises:
        DataError: if the folder cannot be read, or a picture's name is not UTF-8.
    """
    try:
        names = sorted(e.name for e in os.scandir(path) if e.is_file())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    found = [n for n in names if n.rpartition(".")[2].lower() in IMAGE_ENDINGS and not is_foreign_file(n)]
    odd = next((n for n in found if any("\udc80" <= c <= "\udcff" for c in n)), None)
    if odd is not None:
        raise DataError(f"{path}: the name of the picture {odd!a} is not UTF-8; rename it.")
    return found


def plain(text: str) -> str:
    """Return a class name as it is compared: small letters, blanks for underscores, no blanks around."""
    return " ".join(text.replace("_", " ").casefold().split())


def label_of(text: str, card: Card, names: tuple[str, ...] | None = None) -> int | None:
    """Return the label that a class is called by: its name, its own label, or its number."""
    found = named_label(text, card, names)
    number = number_of(text) if found is None else None
    return number if number is not None and number < len(names or card.names) else found


def number_of(text: str) -> int | None:
    """Return the whole number that a text is, or `None`: raised digits and ones without end are none."""
    digits = text.strip()
    return int(digits) if digits.isdecimal() and len(digits) <= _DIGITS else None


def named_label(text: str, card: Card, names: tuple[str, ...] | None = None) -> int | None:
    """Return the label of the class that has this name or own label; a number alone says none."""
    return _table(card, names or card.names).get(plain(text))


_TABLES: dict[tuple[str, tuple[str, ...]], dict[str, int]] = {}


def _table(card: Card, names: tuple[str, ...]) -> dict[str, int]:
    key = (card.name, names)
    if key not in _TABLES:
        table = {plain(own): i for i, own in enumerate(card.labels)}
        for i, name in enumerate(names):
            table.setdefault(plain(name), i)
        _TABLES[key] = table
    return _TABLES[key]


def require_label(text: str, card: Card, where: object) -> int:
    """Return the label of a class.

    Raises:
        DataError: if the data set has no such class.
    """
    found = label_of(text, card)
    if found is None:
        raise DataError(
            f"{where}: {text!r} is none of the {len(card.names):,} classes of {card.title} "
            f"({', '.join(card.names[:3])}...)."
        )
    return found
