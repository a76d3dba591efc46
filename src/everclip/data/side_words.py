"""The words for train, validation and test in columns, files and folders."""

from __future__ import annotations

import re
from typing import Literal

Side = Literal["train", "val", "test"]

WORDS: dict[str, Side] = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "trainval": "train",
    "trn": "train",
    "test": "test",
    "testing": "test",
    "testset": "test",
    "tst": "test",
    "holdout": "test",
    "heldout": "test",
    "eval": "test",
    "evaluation": "test",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "valset": "val",
    "dev": "val",
    "devset": "val",
}
_MARKS: dict[str, Side] = {**WORDS, "true": "test", "false": "train", "restval": "train", "extra": "train"}
_HELD_OUT = re.compile(r"(?:hold|held)[-_ ]out\b")
_CAPITALS = re.compile(r"[A-Z]?[a-z]+(?=[A-Z\d]|$)")


def side_in(mark: object) -> Side | None:
    """Return the side that a value of a split column names, or `None`.

    Decided by the whole value, its first word (`test-dev`, `val2017`, `testA`), or its last (`PublicTest`, `seen_val`).
    """
    text = str(mark).strip()
    plain = text.lower()
    if plain in _MARKS:
        return _MARKS[plain]
    if _HELD_OUT.match(plain):
        return "test"
    words = re.findall(r"[^\W\d_]+", plain)
    ends = words[:1] + words[-1:]
    if len(words) == 1:
        humps = [found.lower() for found in _CAPITALS.findall(text)]
        ends += humps[:1] + humps[-1:]
    return next((WORDS[word] for word in ends if word in WORDS), None)
