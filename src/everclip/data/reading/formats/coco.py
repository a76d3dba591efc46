"""Read COCO's JSON: `images` and `annotations`, which are captions or objects with classes."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.reading.formats.detections import SeveralClassesError, detection_note, no_class
from everclip.data.reading.formats.json_stream import elements
from everclip.data.reading.formats.raw import Raw, picture_list
from everclip.data.reading.formats.system_files import brief
from everclip.data.reading.formats.text_file import is_text
from everclip.data.reading.quarantine import Entry
from everclip.errors import DataError


def read_coco(path: Path, images_root: Path | None = None, encoding: str | None = None) -> Raw:
    """Read a JSON file in COCO's format.

    Each caption is a row. Without captions, every image with objects of one class only has that class; other images
    are set aside.

    Args:
        path: the file.
        images_root: folder of the images; default: searched beside the file.
        encoding: of the file; default: detected.

    Raises:
        DataError: if it cannot be read, or has no images.
    """
    found = _Document()
    for key, element in elements(path, encoding):
        found.take(key, element)
    if not found.files:
        raise DataError(f"{path}: `images` holds no image with an `id` and a `file_name`.")
    rows, broken, notes = found.captioned(path.name) if found.captions else found.classed(path.name)
    columns = pa.table(
        {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(_columns(found))}
    )
    return picture_list(path, columns, broken, images_root, notes)


def _columns(found: _Document) -> tuple[str, ...]:
    return ("image", "caption") if found.captions else ("image", "class_key", "class_name")


class _Document:
    """Collects the names of images, the captions and the classes of objects in a file."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.captions: list[tuple[str, Any]] = []
        self.classes: dict[str, set[str]] = defaultdict(set)
        self.names: dict[str, str] = {}
        self.clashes: dict[str, str] = {}
        """Ids that several images have, with the name of the other image."""
        self.nameless = 0
        """Number of entries without an id or a file name."""

    def take(self, key: str, element: Any) -> None:
        """Add an element."""
        if not isinstance(element, dict):
            return
        if key == "images":
            self._take_image(_id_of(element.get("id")), element.get("file_name"))
        elif key == "annotations":
            image, category = _id_of(element.get("image_id")), _id_of(element.get("category_id"))
            if image is None:
                self.nameless += 1
            elif "caption" in element:
                caption = element["caption"]
                missing = isinstance(caption, float) and math.isnan(caption)
                self.captions.append((image, None if missing else caption))
            elif category is not None:
                self.classes[image].add(category)
        elif key == "categories" and (category := _id_of(element.get("id"))) is not None:
            name = element.get("name")
            self.names[category] = name if isinstance(name, str) and is_text(name) else category

    def _take_image(self, image: str | None, name: Any) -> None:
        if image is None or not isinstance(name, str) or not is_text(name):
            self.nameless += 1
        elif self.files.setdefault(image, name) != name:
            self.clashes[image] = name

    def _clash(self, image: str) -> tuple[str, str] | None:
        """Return (reason, detail) for an id that several images have, or `None`."""
        if image not in self.clashes:
            return None
        return (
            "duplicate-id",
            f"`images` gives the id {image} to {self.files[image]} and {self.clashes[image]}",
        )

    def _nameless_note(self, name: str) -> list[str]:
        if not self.nameless:
            return []
        return [
            f"{name}: without an id or a file name, ignored: {self.nameless:,} of `images` and `annotations`"
        ]

    def captioned(self, name: str) -> tuple[list[tuple[str | None, ...]], list[Entry], list[str]]:
        """Return one row per caption, the entries set aside, and lines for people."""
        rows: list[tuple[str | None, ...]] = []
        broken: list[Entry] = []
        for number, (image, caption) in enumerate(self.captions, 1):
            where = f"{name}, annotation {number}"
            if image not in self.files:
                broken.append(Entry(None, where, "no-image", f"`images` has no id {image}"))
            elif (clash := self._clash(image)) is not None:
                broken.append(Entry(None, where, *clash))
            elif caption is not None and not isinstance(caption, str):
                detail = f"the caption is of type {type(caption).__name__}, expected text"
                broken.append(Entry(None, where, "bad-row", detail))
            elif caption is not None and not is_text(caption):
                broken.append(Entry(None, where, "bad-utf8", "the caption holds bytes that are no text"))
            else:
                rows.append((self.files[image], caption))
        with_captions = {image for image, _ in self.captions}
        bare = [file for image, file in self.files.items() if image not in with_captions]
        notes = [f"{name}: COCO captions: {len(rows):,} captions of {len(self.files) - len(bare):,} images"]
        if bare:
            notes.append(f"{name}: {len(bare):,} images without a caption are ignored ({brief(bare)})")
        return rows, broken, notes + self._nameless_note(name)

    def classed(self, name: str) -> tuple[list[tuple[str | None, ...]], list[Entry], list[str]]:
        """Return one row per image with one class, the entries set aside, and lines for people.

        Raises:
            SeveralClassesError: if every image with objects shows several classes.
        """
        rows: list[tuple[str | None, ...]] = []
        broken: list[Entry] = []
        several = 0
        for image, file in self.files.items():
            held = sorted(self.names.get(key, key) for key in self.classes.get(image, ()))
            where = f"{name}, {file}"
            if (clash := self._clash(image)) is not None:
                broken.append(Entry(None, where, *clash))
            elif not held:
                broken.append(Entry(None, where, "missing-label", no_class(held)))
            elif len(held) > 1:
                several += 1
                broken.append(Entry(None, where, "missing-label", no_class(held)))
            else:
                (key,) = self.classes[image]
                rows.append((file, key, self.names.get(key, key)))
        if not rows and several:
            raise SeveralClassesError(name, "COCO", several, len(broken) - several)
        notes = [detection_note(name, "COCO", len(rows), several, len(broken) - several)]
        return rows, broken, notes + self._nameless_note(name)


def _id_of(value: Any) -> str | None:
    """Return an id as text, or `None` for an invalid one: programs write an id as 1, 1.0 or "1"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
