"""Whole numbers in files of strangers: Python refuses to read more than 4,300 digits."""

from __future__ import annotations

LARGEST = 10**18
"""What a longer number counts as: more than there are of anything."""


def whole_number(digits: str) -> int:
    """Return decimal digits as a number, at most `LARGEST`."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= 18 else LARGEST
