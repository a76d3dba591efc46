"""COCO's JSON: `images` and `annotations`, either captions or objects of classes."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.quarantine import Entry
from everclip.data.readers.foreign import some
from everclip.data.readers.json_stream import elements
from everclip.data.readers.raw import Raw
from everclip.data.readers.text_file import is_text
from everclip.errors import DataError


def read_coco(path: Path, images_root: Path | None = None, encoding: str | None = None) -> Raw:
    """Read a JSON file of COCO's form.

    Captions give a row each. A file without captions gives a class to every picture that shows objects of one class
    only; the others are set aside by name.

    Args:
        path: the file.
        images_root: folder of the pictures; default: looked for beside the file.
        encoding: of the file; default: found out.

    Raises:
        DataError: if it cannot be read, or has no pictures.
    """
    found = _Document()
    for key, element in elements(path, encoding):
        found.take(key, element)
    if not found.files:
        raise DataError(f"{path}: `images` holds no picture with an `id` and a `file_name`.")
    rows, broken, notes = found.captioned(path.name) if found.captions else found.classed(path.name)
    columns = pa.table(
        {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(_columns(found))}
    )
    return Raw(
        path.name,
        columns,
        None,
        broken,
        root=images_root or path.parent,
        root_fixed=images_root is not None,
        known={name: name for name in columns.column_names},
        labels=columns.column("image").to_pylist(),
        notes=notes,
    )


def _columns(found: _Document) -> tuple[str, ...]:
    return ("image", "caption") if found.captions else ("image", "class_key", "class_name")


class _Document:
    """What is needed of a file: names of pictures, captions, and the classes of objects."""

    def __init__(self) -> None:
        self.files: dict[Any, str] = {}
        self.captions: list[tuple[Any, Any]] = []
        self.classes: dict[Any, set[Any]] = defaultdict(set)
        self.names: dict[Any, str] = {}

    def take(self, key: str, element: Any) -> None:
        """Keep what an element says."""
        if not isinstance(element, dict):
            return
        if key == "images":
            name = element.get("file_name")
            if isinstance(name, str) and is_text(name) and _is_id(element.get("id")):
                self.files[element["id"]] = name
        elif key == "annotations" and _is_id(element.get("image_id")):
            if "caption" in element:
                caption = element["caption"]
                missing = isinstance(caption, float) and math.isnan(caption)
                self.captions.append((element["image_id"], None if missing else caption))
            elif _is_id(element.get("category_id")):
                self.classes[element["image_id"]].add(element["category_id"])
        elif key == "categories" and _is_id(element.get("id")):
            name = element.get("name")
            self.names[element["id"]] = (
                name if isinstance(name, str) and is_text(name) else str(element["id"])
            )

    def captioned(self, name: str) -> tuple[list[tuple[str | None, ...]], list[Entry], list[str]]:
        """Return a row per caption, what is set aside, and lines for people."""
        rows: list[tuple[str | None, ...]] = []
        broken: list[Entry] = []
        for number, (image, caption) in enumerate(self.captions, 1):
            where = f"{name}, annotation {number}"
            if image not in self.files:
                broken.append(Entry(None, where, "no-image", f"`images` has no id {image!r}"))
            elif caption is not None and not isinstance(caption, str):
                detail = f"the caption is of type {type(caption).__name__}, expected text"
                broken.append(Entry(None, where, "bad-row", detail))
            elif caption is not None and not is_text(caption):
                broken.append(Entry(None, where, "bad-utf8", "the caption holds bytes that are no text"))
            else:
                rows.append((self.files[image], caption))
        with_captions = {image for image, _ in self.captions}
        bare = [file for image, file in self.files.items() if image not in with_captions]
        notes = [f"{name}: COCO captions: {len(rows):,} captions of {len(self.files) - len(bare):,} pictures"]
        if bare:
            notes.append(f"{name}: {len(bare):,} pictures without a caption are passed over ({some(bare)})")
        return rows, broken, notes

    def classed(self, name: str) -> tuple[list[tuple[str | None, ...]], list[Entry], list[str]]:
        """Return a row per picture of one class, what is set aside, and lines for people."""
        rows: list[tuple[str | None, ...]] = []
        broken: list[Entry] = []
        for image, file in self.files.items():
            held = sorted(self.names.get(key, str(key)) for key in self.classes.get(image, ()))
            where = f"{name}, {file}"
            if not held:
                broken.append(Entry(None, where, "missing-label", "no annotation names a class"))
            elif len(held) > 1:
                detail = (
                    f"objects of {len(held)} classes ({', '.join(held[:4])}); expected one class per picture"
                )
                broken.append(Entry(None, where, "missing-label", detail))
            else:
                (key,) = self.classes[image]
                rows.append((file, str(key), self.names.get(key, str(key))))
        notes = [
            f"{name}: COCO objects: {len(rows):,} pictures show one class, {len(broken):,} none or several"
        ]
        return rows, broken, notes


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)
