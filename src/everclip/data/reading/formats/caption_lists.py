"""Find lists with captions or classes of a folder's images: `captions.txt`, JSON of COCO, Karpathy, Label Studio."""

from __future__ import annotations

import re
from pathlib import Path

from everclip.data.reading.formats.json_forms import json_form
from everclip.data.reading.formats.listing import Listing, listed
from everclip.data.reading.formats.raw import IMAGE_ENDINGS

_TEXTS = (".token", ".txt", ".lst", ".list")
_JSON = (".json", ".ndjson")
_PICTURE = re.compile(rb"\.(%s)\b" % "|".join(IMAGE_ENDINGS).encode(), re.IGNORECASE)
_HEAD = 4096
_MOST_JSON = 20
"""JSON files that are opened; a folder with thousands of them has one per image."""


_DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
"""Files that `datasets` writes about a data set, beside its tables."""


def lists_of(listing: Listing) -> list[str]:
    """Return the lists in a folder, and in those of its folders that hold no images (`annotations/`).

    COCO's boxes and key points are left out if its captions are beside them.
    """
    places = [("", listing)]
    places += [
        (f"{name}/", listed(listing.path / name)) for name in listing.folders if name not in listing.filled
    ]
    found: list[str] = []
    for start, place in places:
        found += [start + name for name in place.of_endings(*_TEXTS) if _names_pictures(place.path / name)]
        names = place.of_endings(*_JSON)
        if len(names) > _MOST_JSON and place.pictures:
            continue
        found += [start + name for name in names[:_MOST_JSON] if _is_list(place.path / name)]
        if start:
            found += [start + name for name in place.of_endings(".csv", ".tsv", ".jsonl")]
    captions = [name for name in found if Path(name).name.lower().startswith("captions")]
    json_captions = any(Path(name).suffix.lower() == ".json" for name in captions)
    return [name for name in found if not (json_captions and _is_other_coco(name))]


def _names_pictures(path: Path) -> bool:
    """Whether one of the first lines of a text file names an image and has more text after it or separated by tabs."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    lines = [line.strip() for line in head.replace(b"\0", b"").splitlines()[:5]]  # of UTF-16, too
    return any(
        (found := _PICTURE.search(line)) is not None and (found.end() < len(line) or line.count(b"\t") > 1)
        for line in lines
    )


def _is_list(path: Path) -> bool:
    if path.suffix.lower() == ".ndjson":
        return True
    return path.name not in _DESCRIPTIONS and json_form(path) != "other"


def _is_other_coco(name: str) -> bool:
    return (
        Path(name)
        .name.lower()
        .startswith(("instances", "person_keypoints", "stuff", "panoptic", "image_info"))
    )
