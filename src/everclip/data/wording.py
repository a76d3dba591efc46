"""Numbers in messages."""

from __future__ import annotations


def share(part: int, whole: int) -> str:
    """Return `12 of 400 (3.0 %)`."""
    return f"{part:,} of {whole:,} ({100 * part / max(1, whole):.1f} %)"


def counted(number: int, one: str, many: str = "") -> str:
    """Return `1 image` or `2,000 images`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
