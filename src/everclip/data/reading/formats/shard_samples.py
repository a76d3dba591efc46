"""Samples of a shard: collect the members of one key, also if other members are between them."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ByteRange = tuple[int, int]
"""Offset and size of a member's bytes in the archive."""

_TWO = "two images under one key, {}; keep one of them, or give each a key of its own (a key ends at the first dot)"


@dataclass
class Sample:
    """The members with one key.

    Attributes:
        key: the name of its members, without their ending.
        number: position among the samples of the archive, from 1.
        cells: the texts, the class, and the fields of the JSON.
        pictures: (ending, byte range) of each image; the ending may have several parts (`seg.png`).
        problem: (reason, detail) if it cannot be used.
    """

    key: str
    number: int
    cells: dict[str, Any] = field(default_factory=dict)
    pictures: list[tuple[str, ByteRange]] = field(default_factory=list)
    problem: tuple[str, str] | None = None

    def picture(self) -> tuple[str, ByteRange] | None:
        """Return the image, or `None`; of several the one with a plain ending: `0.jpg` beside `0.seg.png`."""
        if len(self.pictures) > 1:
            plain = [(ending, place) for ending, place in self.pictures if "." not in ending]
            return plain[0] if len(plain) == 1 else None
        return self.pictures[0] if self.pictures else None

    def find_problem(self, size: int) -> tuple[str, str] | None:
        """Return why the sample cannot be used in an archive of `size` bytes, or `None`."""
        if self.problem is not None:
            return self.problem
        chosen = self.picture()
        if chosen is None and self.pictures:
            return "bad-row", _TWO.format(" and ".join(f".{ending}" for ending, _ in self.pictures[:2]))
        if chosen is not None and sum(chosen[1]) > size:
            start, length = chosen[1]
            return "truncated", f"{size - start:,} of {length:,} bytes are there"
        return None

    def is_complete(self) -> bool:
        """Whether there is an image and a text, a class or a field."""
        return self.problem is None and self.picture() is not None and len(self.cells) > 1

    def completes(self, other: Sample) -> bool:
        """Whether this sample and another have no part in common and can be joined."""
        apart = not self.pictures or not other.pictures
        return apart and self.problem is None and not set(self.cells) & set(other.cells) - {"__key__"}

    def add(self, other: Sample) -> None:
        """Add the content of another sample."""
        self.pictures += other.pictures
        self.cells = {**other.cells, **self.cells}
        self.problem = self.problem or other.problem


def name_parts(name: str, samples: Sequence[Sample]) -> list[str]:
    """Name the texts of members with several endings (`0.caption.txt`), so that none replaces another.

    The only text of its kind gets the plain ending as its name (`txt`), others their first part (`caption`).

    Args:
        name: of the archive, for messages.
        samples: changed in place; such a text is in the cell `.caption.txt`.

    Returns:
        Lines for people.
    """
    taken = {cell for sample in samples for cell in sample.cells}
    parts = sorted(cell for cell in taken if cell.startswith("."))
    names: dict[str, str] = {}
    for cell in parts:
        first, _, last = cell[1:].rpartition(".")
        alone = last not in taken and sum(other.rpartition(".")[2] == last for other in parts) == 1
        names[cell] = last if alone else cell[1:] if first in taken else first
        taken.add(names[cell])
    for sample in samples:
        sample.cells = {names.get(cell, cell): value for cell, value in sample.cells.items()}
    return [
        f"{name}: texts of {cell} members are the column {called!r}, beside others"
        for cell, called in names.items()
        if called != cell.rpartition(".")[2]
    ]


def joined(name: str, found: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """Join samples that complete each other: first those with equal keys, then those with nearly equal keys.

    Args:
        name: of the archive, for messages.
        found: members that are next to each other and share a key.

    Returns:
        The samples, and lines for people.
    """
    first: dict[str, Sample] = {}
    kept: list[Sample] = []
    for sample in found:
        earlier = first.setdefault(sample.key, sample)
        if earlier is not sample and earlier.completes(sample):
            earlier.add(sample)
        else:
            kept.append(sample)
    notes = []
    if len(kept) < len(found):
        notes.append(
            f"{name}: members of {len(found) - len(kept):,} keys do not stand next to each other; they are joined "
            "by the key"
        )
    return _joined_by_near_key(name, kept, notes)


def _joined_by_near_key(name: str, found: list[Sample], notes: list[str]) -> tuple[list[Sample], list[str]]:
    """Join an image with a text if their keys differ only in letter case or Unicode form."""
    alike: dict[str, list[Sample]] = defaultdict(list)
    for sample in found:
        if not sample.is_complete():
            alike[unicodedata.normalize("NFC", sample.key).casefold()].append(sample)
    gone: set[int] = set()
    example = ""
    for pair in alike.values():
        if len(pair) == 2 and pair[0].key != pair[1].key and pair[0].completes(pair[1]):
            example = example or f"{pair[0].key!a} with {pair[1].key!a}"
            pair[0].add(pair[1])
            gone.add(id(pair[1]))
    if gone:
        notes.append(
            f"{name}: members of {len(gone):,} samples have names that differ in letter case or Unicode form only; "
            f"they are joined ({example})"
        )
    return [sample for sample in found if id(sample) not in gone], notes
