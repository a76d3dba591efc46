"""Check whether a public data set is complete; say what is missing and where to get it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from everclip.data.catalog.cards import Card
from everclip.errors import DataError

CountMode = Literal["required", "noted"]


@dataclass(frozen=True)
class Expected:
    """The expected content of a data set.

    Attributes:
        card: the data set.
        where: the folder or source.
        expected: images per side.
        classes: expected number of classes.
    """

    card: Card
    where: str
    expected: dict[str, int]
    classes: int


def present(folder: Path, files: Sequence[str]) -> list[int]:
    """Return the positions of the files that exist; every folder is listed once."""
    held: dict[str, set[str]] = defaultdict(set)
    parents = {os.path.dirname(file) for file in files}
    for parent in parents:
        try:
            held[parent] = set(os.listdir(folder / parent))
        except (OSError, ValueError):  # no folder, or not even a path
            held[parent] = set()  # counted as missing
    return [i for i, file in enumerate(files) if os.path.basename(file) in held[os.path.dirname(file)]]


def check_counts(
    counted: Expected, sides: Sequence[str | None], labels: Sequence[int], mode: CountMode
) -> list[str]:
    """Compare the content with the expected one; return a line for people if a difference is allowed.

    Raises:
        DataError: says what is missing and where to get it.
    """
    card = counted.card
    found = Counter(card.tested if side == "test" and card.tested not in sides else side for side in sides)
    wanted = {(card.tested if side == "test" else side): n for side, n in counted.expected.items()}
    differing = {side: n for side, n in wanted.items() if found[side] != n}
    held = len(set(labels))
    if not differing and held == counted.classes:
        return []
    parts = ", ".join(f"{found[side]:,} of {n:,} {side} images" for side, n in differing.items())
    text = parts or "all images"
    if held != counted.classes:
        text += f"; {held:,} of {counted.classes:,} classes{_missing(card, labels)}"
    if mode == "noted":
        return [f"{card.title}: {text}; numbers on it are not the benchmark's"]
    raise DataError(
        f"{card.title} in {counted.where}: {text}. Expected {card.files}; people get it from {card.get}. "
        "To run with the existing images anyway, set scenario.counts=noted."
    )


def _missing(card: Card, labels: Sequence[int]) -> str:
    if card.present is not None or not card.names:
        return ""
    held = set(labels)
    gone = [name for label, name in enumerate(card.names) if label not in held]
    more = f" and {len(gone) - 3:,} more" if len(gone) > 3 else ""
    return f" (none of {', '.join(gone[:3])}{more})"
