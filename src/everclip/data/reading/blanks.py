"""Blank characters: spaces of any kind, and invisible characters; `str.strip` removes only some of them."""

from __future__ import annotations

import unicodedata

_FILLERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Invisible characters whose Unicode category is letter or symbol."""


def is_blank_character(character: str) -> bool:
    """Whether a character is invisible: a blank, a line end, a control, direction or joining mark."""
    return character in _FILLERS or unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp")


def is_blank(text: str) -> bool:
    """Whether a text has no visible character."""
    return not text or text.isspace() or all(map(is_blank_character, text))


def trimmed(text: str) -> str:
    """Return a text without leading and trailing blanks of any kind."""
    start, end = 0, len(text)
    while start < end and is_blank_character(text[start]):
        start += 1
    while end > start and is_blank_character(text[end - 1]):
        end -= 1
    return text[start:end]
