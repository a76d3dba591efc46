"""The types of layouts, and helpers that layouts share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everclip.data.catalog.cards import Card
from everclip.data.reading.formats.raw import IMAGE_ENDINGS
from everclip.data.reading.formats.system_files import is_system_file, is_system_folder
from everclip.errors import DataError


@dataclass
class ImageList:
    """The images of a data set by its own files.

    Attributes:
        files: paths within the folder, or names of images that are not files.
        labels: the class of each image.
        sides: `train`, `val` or `test` of each image; `None` if the data set has no split.
        more: further columns.
        pictures: encoded images in the order of `files`, if they are not files.
        names: class names from the data set's own files.
    """

    files: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    sides: list[str | None] = field(default_factory=list)
    more: dict[str, list[str]] = field(default_factory=dict)
    pictures: Callable[[], Iterable[bytes]] | None = None
    names: tuple[str, ...] | None = None

    def add(self, file: str, label: int, side: str | None) -> None:
        """Add an image."""
        self.files.append(file)
        self.labels.append(label)
        self.sides.append(side)

    def keep(self, wanted: Iterable[int]) -> ImageList:
        """Return the images at some positions; they must be files."""
        at = list(wanted)
        return ImageList(
            [self.files[i] for i in at],
            [self.labels[i] for i in at],
            [self.sides[i] for i in at],
            {name: [values[i] for i in at] for name, values in self.more.items()},
            None,
            self.names,
        )


@dataclass(frozen=True)
class Dataset:
    """The folders of a data set.

    Attributes:
        folder: of the data set.
        root: of all data sets.
    """

    folder: Path
    root: Path


_DIGITS = 9

ReadLayout = Callable[[Dataset, Card], ImageList]


@dataclass(frozen=True)
class Layout:
    """A layout: files or folders that identify it (one is enough), its reader, and the label in a path."""

    marks: tuple[str, ...]
    read: ReadLayout
    label: Callable[[str, Card], int] | None = None


def lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank.

    Raises:
        DataError: if it cannot be read as UTF-8 text.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}).") from error


def json_of(path: Path) -> Any:
    """Return the content of a JSON file.

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
        return sorted(e.name for e in os.scandir(path) if e.is_dir() and not is_system_folder(e.name))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def pictures(path: Path) -> list[str]:
    """Return the names of the images in a folder, sorted.

    Raises:
        DataError: if the folder cannot be read, or an image's name is not UTF-8.
    """
    try:
        names = sorted(e.name for e in os.scandir(path) if e.is_file())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    found = [n for n in names if n.rpartition(".")[2].lower() in IMAGE_ENDINGS and not is_system_file(n)]
    odd = next((n for n in found if any("\udc80" <= c <= "\udcff" for c in n)), None)
    if odd is not None:
        raise DataError(f"{path}: the name of the image {odd!a} is not UTF-8; rename it.")
    return found


def plain(text: str) -> str:
    """Return a class name in comparable form: lower case, single blanks instead of underscores."""
    return " ".join(text.replace("_", " ").casefold().split())


def label_of(text: str, card: Card, names: tuple[str, ...] | None = None) -> int | None:
    """Return the label of a class that is given by name, by the data set's own name, or by number."""
    found = named_label(text, card, names)
    number = number_of(text) if found is None else None
    return number if number is not None and number < len(names or card.names) else found


def number_of(text: str) -> int | None:
    """Return a text as a whole number, or `None`; superscript digits and very long numbers are not numbers."""
    digits = text.strip()
    return int(digits) if digits.isdecimal() and len(digits) <= _DIGITS else None


def named_label(text: str, card: Card, names: tuple[str, ...] | None = None) -> int | None:
    """Return the label of the class with this name or own name of the data set, or `None`; numbers do not count."""
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
