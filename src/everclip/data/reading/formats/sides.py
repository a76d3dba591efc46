"""Find the side (train, validation or test) in names of files and folders."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.system_files import brief
from everclip.data.side_words import WORDS

SWITCH = "data.columns.split= to ignore names"
"""The setting that ignores sides in names of files and folders."""

_SPLITS = {word: "validation" if side == "val" else side for word, side in WORDS.items()}
_MOST_LINES = 12


def side_of_name(name: str) -> str | None:
    """Return the side that a file's or folder's name begins with: `train`, `test` or `validation`."""
    found = re.match(r"[A-Za-z]+", name)
    word = found.group().lower() if found else ""
    rest = name[len(word) :]
    if word in ("hold", "held") and re.match(r"[-_]out\b", rest, re.IGNORECASE):
        return "test"
    return _SPLITS.get(word) if not rest or rest[0] in "-_. " or rest[0].isdigit() else None


def sides_of_names(names: Iterable[str]) -> dict[str, str]:
    """Return the sides of the names that contain one.

    A name that ends with a side (`cars_train`) counts only if another name with the same beginning has another side.
    """
    named = list(names)
    found = {name: side for name in named if (side := side_of_name(name.rpartition("/")[2])) is not None}
    ending: dict[str, dict[str, str]] = defaultdict(dict)
    for name in named:
        stem = re.sub(r"(?<=[A-Za-z])\d+$", "", name.split(".")[0])
        start, _, last = re.sub(r"[-_ ]", "\0", stem).rpartition("\0")
        if name not in found and start and last.lower() in _SPLITS:
            ending[start][name] = _SPLITS[last.lower()]
    for group in ending.values():
        if len(set(group.values())) > 1:
            found |= group
    return {name: found[name] for name in named if name in found}


def with_splits(found: Sequence[tuple[Raw, str | None]], folders: Sequence[str] = ()) -> list[Raw]:
    """Return the parts with the sides in their names, if the names give more than one side; add notes.

    Args:
        found: parts and their sides.
        folders: names of the parts in the notes, if not their own; parts of one folder have one line.
    """
    parts = [raw for raw, _ in found]
    if len(found) > 1 and len({split for _, split in found}) > 1:
        for raw, split in found:
            raw.split = raw.split or split
        names = folders or [raw.name for raw in parts]
        parts[0].notes[:0] = _lines([(name, raw.split) for name, raw in zip(names, parts, strict=True)])
    return parts


def _lines(called: Sequence[tuple[str, str | None]]) -> list[str]:
    """Return a line per file or folder, or per side if there are many."""
    named = list(dict.fromkeys(called))
    groups: dict[str | None, list[str]] = defaultdict(list)
    if len(named) > _MOST_LINES:
        for name, side in named:
            groups[side].append(name)
        lines = [_line(f"{len(names):,} files ({brief(names)})", side) for side, names in groups.items()]
    else:
        lines = [_line(name, side) for name, side in named]
    return lines


def _line(what: str, side: str | None) -> str:
    if side is None:
        return f"{what}: training, since the name gives no side"
    said = {"train": "training", "validation": "validation", "test": "test"}[side]
    return f"{what}: {said}, by the name ({SWITCH})"
