"""Show users' text in images and terminals: escape control characters, mark characters without a glyph."""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

UNDRAWABLE = "\u25af"
"""Drawn for a character that no installed font has."""

_JOINERS = "\u200c\u200d\ufe0f"


def plain(text: str, longest: int = 80) -> str:
    """Return one line of text, shortened; control and direction characters become visible (`\\x1b`, `\\u202e`)."""
    text = " ".join(text[: 4 * longest].split())
    text = text if len(text) <= longest else text[: longest - 1] + "\u2026"
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and c not in _JOINERS
        else c
        for c in text
    )


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib."""
    return ImageFont.truetype(str(_bundled_font(bold)), size)


def _bundled_font(bold: bool) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


@lru_cache(maxsize=4096)
def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return the default font, or the system font that has most of the characters that it lacks."""
    missing = {ord(c) for c in text if not c.isspace()} - _covered(str(_bundled_font(False)))
    if not missing:
        return font(size)
    best = max(_system_fonts(), key=lambda path: len(missing & _covered(path)), default=None)
    if best is None or not missing & _covered(best):
        return font(size)
    return ImageFont.truetype(best, size)


def drawable(text: str, chosen: ImageFont.FreeTypeFont) -> str:
    """Return the text with a mark for each character that the font lacks."""
    known = _covered(str(chosen.path))
    return "".join(c if ord(c) in known or c.isspace() else UNDRAWABLE for c in text if c not in _JOINERS)


@cache
def _covered(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a broken font file of the system
        return frozenset()


@cache
def _system_fonts() -> tuple[str, ...]:
    from matplotlib import font_manager

    return tuple(
        sorted(path for path in font_manager.findSystemFonts() if path.endswith((".ttf", ".otf", ".ttc")))
    )


def wrap(text: str, chosen: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Break a text into at most `lines` lines of `width` pixels; what does not fit ends in an ellipsis."""
    words, rows = text.split(), [""]
    for position, word in enumerate(words):
        longer = f"{rows[-1]} {word}".strip()
        if chosen.getlength(longer) <= width:
            rows[-1] = longer
            continue
        if rows[-1]:
            if len(rows) == lines:
                return [*rows[:-1], _cut(f"{rows[-1]} {' '.join(words[position:])}", chosen, width)]
            rows.append("")
        # A single word that is too long, or a script without spaces, breaks anywhere.
        while chosen.getlength(word) > width:
            if len(rows) == lines:
                return [*rows[:-1], _cut(" ".join([word, *words[position + 1 :]]), chosen, width)]
            fit = max(1, max(n for n in range(len(word)) if chosen.getlength(word[:n]) <= width))
            rows[-1], word = word[:fit], word[fit:]
            rows.append("")
        rows[-1] = word
    return [row for row in rows if row]


def _cut(text: str, chosen: ImageFont.FreeTypeFont, width: int) -> str:
    text = text[:width]  # no letter is narrower than a pixel
    while text and chosen.getlength(text + "\u2026") > width:
        text = text[:-1]
    return text.rstrip() + "\u2026"
