"""Detect the form of a JSON file from its first elements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from everclip.data.reading.columns import is_known_name
from everclip.data.reading.formats.json_stream import elements
from everclip.data.reading.formats.raw import IMAGE_ENDINGS
from everclip.data.reading.formats.sides import side_of_name
from everclip.errors import DataError

JsonForm = Literal["coco", "karpathy", "label-studio", "rows", "captions-by-file", "files-by-class", "other"]

_MOST_ALIKE = 1000
"""Elements of one key that are examined."""


def json_form(path: Path, encoding: str | None = None) -> JsonForm:
    """Return the form of a JSON file; `other` if it cannot be read."""
    try:
        return _form(elements(path, encoding))
    except (DataError, OSError):
        return "other"


def _form(found: Iterator[tuple[str, Any]]) -> JsonForm:
    seen: JsonForm = "other"
    counts: Counter[str] = Counter()
    for key, element in found:
        counts[key] += 1
        form = _of_element(key, element)
        if form in ("coco", "karpathy", "label-studio", "captions-by-file", "files-by-class"):
            return form
        seen = form if seen == "other" else seen
        if counts[key] >= _MOST_ALIKE or (seen == "rows" and key == ""):
            return seen
    return seen


def _of_element(key: str, element: Any) -> JsonForm:
    if names_a_picture(key) and type(element) in (str, int):
        return "captions-by-file"
    is_class = key and side_of_name(key) is None and not is_known_name(key) and key != "data"
    if is_class and isinstance(element, str) and names_a_picture(element):
        return "files-by-class"
    if is_known_name(key) and isinstance(element, str) and names_a_picture(element):
        return "rows"  # a column of images
    if key != "data" and is_pair(element):  # pandas' cells are under `data`
        return "rows"
    if not isinstance(element, dict):
        return "other"
    if key == "images":
        if isinstance(element.get("filename"), str) and {"sentences", "split"} & set(element):
            return "karpathy"
        if isinstance(element.get("file_name"), str) and "id" in element and "caption" not in element:
            return "coco"
    if key == "annotations" and "image_id" in element and {"caption", "category_id"} & set(element):
        return "coco"
    if key == "" and isinstance(element.get("data"), dict) and {"annotations", "completions"} & set(element):
        return "label-studio"
    return "rows" if element else "other"


def is_pair(element: Any) -> bool:
    """Whether an element is an image's path and its class: `["a.jpg", 3]`, `["a.jpg", "cat"]`."""
    pair = isinstance(element, list) and len(element) == 2 and type(element[1]) in (str, int)
    return pair and isinstance(element[0], str) and names_a_picture(element[0])


def names_a_picture(key: str) -> bool:
    """Whether a text ends like an image's file name."""
    stem, dot, ending = key.rpartition(".")
    return bool(stem and dot) and ending.lower() in IMAGE_ENDINGS
