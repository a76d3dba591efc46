"""Read lists of images per side beside the data: `train.txt`, `Flickr_8k.testImages.txt`, `meta/test.txt`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from everclip.data.reading.formats.listing import listed, notes_without
from everclip.data.reading.formats.picture_index import picture_column
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.sides import SWITCH, side_of_name
from everclip.data.reading.formats.text_file import small_text
from everclip.errors import DataError

_SIDE = re.compile(
    r"(?<![a-z])(?i:train|training|test|testing|val|valid|validation|dev|holdout)(?![a-z])"
)  # as in `testImages`
_CUB = ("images.txt", "train_test_split.txt")
_MOST_BYTES = 64 * 1024 * 1024
_LEAST_SHARE = 0.9
"""Share of a list's lines that must name known images."""


def with_side_lists(raws: Sequence[Raw], folder: Path, encoding: str | None = None) -> list[Raw]:
    """Give rows the sides of lists, if the data have no sides.

    Args:
        raws: parts of the data.
        folder: of the data; lists in it and in its folders without images are read.
        encoding: of the lists, as the user says.
    """
    if any(
        raw.split is not None or "split" in raw.known or "split" in raw.columns.column_names for raw in raws
    ):
        return list(raws)
    lists = _lists(folder)
    stems = {stem for raw in raws for stem in _stems(raw)}
    numbered = _by_number(folder, stems, encoding)
    if len(lists) < 2 and not numbered:
        return list(raws)
    sides, used = (numbered, [folder / name for name in _CUB]) if numbered else _sides(lists, stems, encoding)
    if len(set(sides.values())) < 2:
        return list(raws)
    names = [os.path.relpath(file, folder) for file in used]
    sided = [_sided(raw, sides, names) for raw in raws]
    left = sum(raw.columns.column("split").null_count for raw in sided)
    note = f"{folder.name}: sides are those of the lists {', '.join(names)} ({SWITCH})"
    note += f"; training: {left:,} rows that no list names" if left else ""
    sided[0].notes.insert(0, note)
    return sided


def _by_number(folder: Path, stems: set[str], encoding: str | None) -> dict[str, str]:
    """Return the sides of CUB: `images.txt` (number, path) with `train_test_split.txt` (number, 1 for training)."""
    try:
        named, marked = (
            dict(
                _cells(line)
                for line in small_text(folder / name, _MOST_BYTES, encoding).splitlines()
                if line.strip()
            )
            for name in _CUB
        )
    except (OSError, DataError, ValueError):
        return {}
    found = {_stem(path): marked.get(number) for number, path in named.items()}
    sides = {
        stem: {"1": "train", "0": "test"}.get(mark or "") for stem, mark in found.items() if stem in stems
    }
    whole = len(sides) >= _LEAST_SHARE * len(found) > 0 and None not in sides.values()
    return {stem: str(side) for stem, side in sides.items()} if whole else {}


def _cells(line: str) -> tuple[str, str]:
    """Return the number and what follows it.

    Raises:
        ValueError: if there are no two cells.
    """
    number, rest = line.split(maxsplit=1)
    return number, rest.strip()


def _lists(folder: Path) -> list[tuple[Path, str]]:
    """Return the text files that are named after sides, with their sides."""
    listing = listed(folder)
    places = [listing, *(listed(folder / name) for name in listing.folders if name not in listing.filled)]
    found = []
    for place in places:
        for name in place.of_endings(".txt", ".lst", ".list"):
            words = {side_of_name(word) for word in _SIDE.findall(Path(name).stem)}
            if len(words) == 1:
                found.append((place.path / name, str(words.pop())))
    return found


def _sides(
    lists: Sequence[tuple[Path, str]], stems: set[str], encoding: str | None
) -> tuple[dict[str, str], list[Path]]:
    """Return the side of every image that a list names, without its ending, and the lists that name images.

    A list that cannot be read is ignored; it is named among the unread files.
    """
    found: dict[str, str] = {}
    used: list[Path] = []
    for file, side in lists:
        try:
            lines = small_text(file, _MOST_BYTES, encoding).splitlines()
        except (OSError, DataError):
            continue
        names = [_named(line, stems) for line in lines if line.strip()]
        held = [name for name in names if name in stems]
        if names and len(held) >= _LEAST_SHARE * len(names):
            used.append(file)
            # An image in two lists is not trained on.
            found |= {name: side for name in held if found.get(name, "train") == "train"}
    return found, used


def _named(line: str, stems: set[str]) -> str:
    """Return the image that a line names: the whole line, for names with blanks, else its first word."""
    whole = _stem(line.strip())
    return whole if whole in stems else _stem(line.split()[0])


def _stem(path: str) -> str:
    plain = path.replace("\\", "/").removeprefix("./")
    return os.path.splitext(plain)[0]


def _stems(raw: Raw) -> list[str]:
    """Return the possible names of the rows' images in lists: the path or its last parts, without ending."""
    return [name for path in _paths(raw) if path is not None for name in _names(path)]


def _paths(raw: Raw) -> list[str | None]:
    column = raw.known.get("image") or picture_column(raw)
    if column is None or not pa.types.is_string(raw.columns.schema.field(column).type):
        return [None] * raw.columns.num_rows
    found: list[str | None] = raw.columns.column(column).to_pylist()
    return found


def _names(path: str) -> list[str]:
    parts = _stem(path).split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _sided(raw: Raw, sides: dict[str, str], lists: Sequence[str]) -> Raw:
    values = [
        None if path is None else next((sides[name] for name in _names(path) if name in sides), None)
        for path in _paths(raw)
    ]
    return replace(
        raw,
        columns=raw.columns.append_column("split", pa.array(values, pa.string())),
        notes=notes_without(raw.notes, lists),
    )
