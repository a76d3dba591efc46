"""Patterns for classes in file names: `{class}_#` reads `cat_001.jpg`."""

from __future__ import annotations

import re

CLASS = "{class}"


def checked_pattern(pattern: str) -> str:
    """Return a valid pattern unchanged.

    Raises:
        ValueError: if it does not contain `{class}` exactly once.
    """
    if pattern.count(CLASS) != 1 or "/" in pattern:
        raise ValueError(
            f"{pattern!r} is no pattern; expected {CLASS} once, with # for a number and * for anything: "
            f"'{CLASS}_#' reads cat_001.jpg, '#_{CLASS}' reads 001_cat.jpg"
        )
    return pattern


def compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern as a regular expression whose group `name` is the class."""
    parts = {CLASS: "(?P<name>.+?)", "#": r"\d+", "*": ".*?"}
    pieces = re.split(r"(\{class\}|#|\*)", pattern)
    return re.compile("".join(parts.get(piece, re.escape(piece)) for piece in pieces), re.DOTALL)
