"""Read Karpathy's splits of Flickr8k, Flickr30k and COCO: `images` with `split`, `sentences` and `filename`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.reading.formats.json_stream import elements
from everclip.data.reading.formats.raw import Raw, picture_list
from everclip.data.reading.formats.text_file import is_text
from everclip.data.reading.quarantine import Entry
from everclip.errors import DataError

_TRAINED = {"restval": "train"}
"""COCO's `restval` is used for training, as in published results."""


def read_karpathy(path: Path, images_root: Path | None = None, encoding: str | None = None) -> Raw:
    """Read a JSON file in Karpathy's format: one row per sentence.

    Args:
        path: the file.
        images_root: folder that `filepath/filename` starts from; default: searched beside the file.
        encoding: of the file; default: detected.

    Raises:
        DataError: if it cannot be read, or has no images.
    """
    rows: list[tuple[str | None, ...]] = []
    broken: list[Entry] = []
    sides: Counter[str] = Counter()
    pictures = 0
    for key, element in elements(path, encoding):
        if key != "images":
            continue
        pictures += 1
        file = _file(element)
        if file is None:
            broken.append(Entry(None, f"{path.name}, image {pictures}", "no-image", "no `filename`"))
            continue
        split = element.get("split")
        side = _TRAINED.get(split, split) if _is_word(split) else None
        sides[str(split)] += 1
        found = [_sentence(s) for s in _listed(element.get("sentences"))]
        rows += [(file, text, side) for text in found if text is not None]
        if all(text is None for text in found):
            broken.append(
                Entry(None, f"{path.name}, {file}", "empty-caption", "no sentence with text in `raw`")
            )
    if not pictures:
        raise DataError(f"{path}: `images` is empty.")
    columns = pa.table(
        {
            name: pa.array([row[i] for row in rows], pa.string())
            for i, name in enumerate(("image", "caption", "split"))
        }
    )
    counts = ", ".join(f"{count:,} {side}" for side, count in sides.items())
    notes = [f"{path.name}: Karpathy's split: {len(rows):,} captions of {pictures:,} images ({counts})"]
    if "restval" in sides:
        notes.append(f"{path.name}: 'restval' counts as 'train'")
    return picture_list(path, columns, broken, images_root, notes)


def _file(element: Any) -> str | None:
    if not isinstance(element, dict) or not _is_word(element.get("filename")):
        return None
    folder = element.get("filepath")
    return f"{folder}/{element['filename']}" if _is_word(folder) else str(element["filename"])


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_text(value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _sentence(value: Any) -> str | None:
    """Return the text of a sentence: `raw`, else its tokens."""
    if isinstance(value, dict):
        raw, tokens = value.get("raw"), _listed(value.get("tokens"))
        value = raw if _is_word(raw) else " ".join(tokens) if all(map(_is_word, tokens)) else None
    return value if _is_word(value) else None
