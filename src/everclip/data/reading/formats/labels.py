"""Recognise texts that are labels: short, few, and each used for several images."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_WORDS = 3
_LEAST_EACH = 3
_MOST_CLASSES = 2000

SWITCH = "data.columns.caption=text if they are captions"


def are_labels(texts: Sequence[object]) -> bool:
    """Whether all values are short texts or whole numbers, each used three or more times on average."""
    if not texts or not all(type(text) in (str, int) for text in texts):
        return False
    distinct = {str(text).strip() for text in texts}
    short = all(text and len(text.split()) <= _MOST_WORDS for text in distinct)
    return short and 2 <= len(distinct) <= min(_MOST_CLASSES, len(texts) // _LEAST_EACH)
