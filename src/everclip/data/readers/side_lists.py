"""Lists of pictures per side beside the data: `train.txt`, `Flickr_8k.testImages.txt`, `meta/test.txt`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from everclip.data.readers.listing import listed
from everclip.data.readers.picture_index import picture_column
from everclip.data.readers.raw import Raw
from everclip.data.readers.sides import SWITCH, split_of

_SIDE = re.compile(
    r"(?<![a-z])(?i:train|training|test|testing|val|valid|validation|dev|holdout)(?![a-z])"
)  # as in `testImages`
_MOST_BYTES = 64 * 1024 * 1024
_LEAST_SHARE = 0.9
"""Share of a list's lines that must name pictures that were read."""


def with_side_lists(raws: Sequence[Raw], folder: Path) -> list[Raw]:
    """Give rows the sides that lists say, where the data say none themselves.

    Args:
        raws: parts of the data.
        folder: where they lie; lists in it and in its folders without pictures are taken.
    """
    if any(
        raw.split is not None or "split" in raw.known or "split" in raw.columns.column_names for raw in raws
    ):
        return list(raws)
    lists = _lists(folder)
    sides = _sides(lists, {stem for raw in raws for stem in _stems(raw)}) if len(lists) > 1 else {}
    if len(set(sides.values())) < 2:
        return list(raws)
    named = ", ".join(os.path.relpath(file, folder) for file, _ in lists)
    note = f"{folder.name}: sides are those of the lists {named} ({SWITCH})"
    return [_sided(raw, sides, [note] if number == 0 else []) for number, raw in enumerate(raws)]


def _lists(folder: Path) -> list[tuple[Path, str]]:
    """Return the text files that are called after sides, with their sides."""
    listing = listed(folder)
    places = [listing, *(listed(folder / name) for name in listing.folders if name not in listing.filled)]
    found = []
    for place in places:
        for name in place.of_endings(".txt", ".lst", ".list"):
            words = {split_of(word) for word in _SIDE.findall(Path(name).stem)}
            if len(words) == 1 and (place.path / name).stat().st_size <= _MOST_BYTES:
                found.append((place.path / name, str(words.pop())))
    return found


def _sides(lists: Sequence[tuple[Path, str]], stems: set[str]) -> dict[str, str]:
    """Return the side of every picture that a list names, without its ending; a later list does not overrule."""
    found: dict[str, str] = {}
    for file, side in lists:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        names = [_stem(line.split()[0]) for line in lines if line.strip()]
        held = [name for name in names if name in stems]
        if names and len(held) >= _LEAST_SHARE * len(names):
            # What two lists name is not trained on.
            found |= {name: side for name in held if found.get(name, "train") == "train"}
    return found


def _stem(path: str) -> str:
    plain = path.replace("\\", "/").removeprefix("./")
    return os.path.splitext(plain)[0]


def _stems(raw: Raw) -> list[str]:
    """Return what lists may call the pictures of the rows: the path or its last parts, without ending."""
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


def _sided(raw: Raw, sides: dict[str, str], notes: list[str]) -> Raw:
    values = [
        None if path is None else next((sides[name] for name in _names(path) if name in sides), None)
        for path in _paths(raw)
    ]
    return replace(
        raw,
        columns=raw.columns.append_column("split", pa.array(values, pa.string())),
        notes=[*notes, *raw.notes],
    )
