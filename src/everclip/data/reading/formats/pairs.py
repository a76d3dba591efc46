"""Read images with text files of the same name, beside them or in a folder: `1.jpg` with `1.txt` or `1.json`.

Every line of a text is a caption. Objects, as YOLO and VOC write them, give classes.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.reading.formats.class_folders import FolderImages
from everclip.data.reading.formats.detections import detection_form, read_detections
from everclip.data.reading.formats.folder_options import FolderOptions
from everclip.data.reading.formats.jsonl import MAX_LINE, parsed
from everclip.data.reading.formats.labels import SWITCH, are_labels
from everclip.data.reading.formats.listing import Listing, others_note
from everclip.data.reading.formats.raw import Raw, table_of
from everclip.data.reading.formats.sides import sides_of_names
from everclip.data.reading.formats.system_files import brief
from everclip.data.reading.formats.text_file import small_text
from everclip.data.reading.quarantine import Entry
from everclip.errors import DataError

TEXT_ENDINGS = ("txt", "caption", "text")
_LOOKED_AT = 20


def captions_in(text: str) -> str | list[str] | None:
    """Return the caption in a text: `None` if it is blank, a list if it has several lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return None if not lines else lines[0] if len(lines) == 1 else lines


def all_lists(values: Sequence[Any]) -> list[Any]:
    """Convert all captions to lists if one of them is a list, so that they fit into one column."""
    if not any(isinstance(value, list) for value in values):
        return list(values)
    return [value if value is None or isinstance(value, list) else [value] for value in values]


def read_pairs(listing: Listing, options: FolderOptions, texts: Path | None = None) -> Raw | None:
    """Read a folder where at least half of the images have a text beside them, or return `None`.

    Args:
        listing: the folder.
        options: how to read it.
        texts: folder of the texts; default: beside the images.
    """
    encoding = options.reading.encoding
    found = FolderImages(listing.path, listing.root)
    for name in listing.files:
        found.take(listing.path / name)
    for name in listing.folders:
        found.take_below(listing.path / name)
    place = texts or listing.path
    partners = _partners(place, found.files)
    kind = _most(partners)
    if kind is None or 2 * sum(kind in held for held in partners) < len(partners):
        return None
    paths = [
        place / os.path.dirname(file) / held[kind] if kind in held else None
        for file, held in zip(found.files, partners, strict=True)
    ]
    files = [path for path in paths if path is not None]
    form = detection_form(kind, [t for f in files[:_LOOKED_AT] if isinstance(t := _text(f, encoding), str)])
    if form is None:
        return _raw(listing, found, paths, kind, encoding, None if texts is None else texts.parent)
    if form == "other" or _classes(found.files):
        what = "hold numbers" if kind in TEXT_ENDINGS else "hold objects"
        listing.notes.append(
            f"{listing.path.name}: the .{kind} files beside the images {what}, no captions; they are not read"
        )
        return None
    annotations = [None if path is None else _text(path, encoding) for path in paths]
    return read_detections(listing, found, annotations, form, place, options)


def _partners(root: Path, files: Sequence[str]) -> list[dict[str, str]]:
    """Return the text files of each image by ending; letter case and Unicode form are ignored."""
    held: dict[str, tuple[set[str], dict[str, list[str]]]] = {}
    partners = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in held:
            held[folder] = _names_in(root / folder)
        stem = os.path.splitext(name)[0]
        found = {}
        for ending in (*TEXT_ENDINGS, "json", "xml"):
            exact, near = f"{stem}.{ending}", held[folder][1].get(_folded(f"{stem}.{ending}"), [])
            if exact in held[folder][0]:
                found[ending] = exact
            elif len(near) == 1:
                found[ending] = near[0]
        partners.append(found)
    return partners


def _names_in(folder: Path) -> tuple[set[str], dict[str, list[str]]]:
    """Return the names in a folder, and the same names by their form without letter case and Unicode form."""
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    near: dict[str, list[str]] = {}
    for name in names:
        near.setdefault(_folded(name), []).append(name)
    return set(names), near


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _most(partners: Sequence[Mapping[str, str]]) -> str | None:
    counts = Counter(end for held in partners for end in held)
    texts = [end for end in TEXT_ENDINGS if counts[end]]
    if texts:
        return max(texts, key=lambda end: counts[end])
    return next((end for end in ("json", "xml") if counts[end]), None)


def _text(path: Path, encoding: str | None) -> str | tuple[str, str]:
    """Return a small text file's content, or (reason, detail)."""
    try:
        return small_text(path, MAX_LINE, encoding)
    except OSError as error:
        return "unreadable-file", f"{path.name}: {error.strerror or error}"
    except DataError as error:
        return "bad-utf8" if isinstance(error.__cause__, UnicodeDecodeError) else "bad-row", str(error)


def _notes_on_texts(name: str, kind: str, labels: bool, several: int, bare: Sequence[str]) -> Iterator[str]:
    """Yield what a user should know of the text files of a folder."""
    if labels:
        yield f"{name}: the .{kind} files hold classes: few short texts ({SWITCH})"
    if several:
        yield f"{name}: several lines of a .{kind} file are several captions: {several:,} files"
    if bare:
        yield f"{name}: images without a .{kind} file, not read: {len(bare):,} ({brief(bare)})"


def _raw(
    listing: Listing,
    found: FolderImages,
    paths: Sequence[Path | None],
    kind: str,
    encoding: str | None,
    within: Path | None = None,
) -> Raw:
    rows: list[dict[str, Any]] = []
    classes = _classes(found.files)
    bare: list[str] = []
    several = 0
    root = Path(os.path.realpath(within or listing.path))
    for number, (file, path) in enumerate(zip(found.files, paths, strict=True)):
        if path is None:
            bare.append(file)
            continue
        text = _text(path, encoding)
        if not Path(os.path.realpath(path)).is_relative_to(root):
            text = ("outside-root", f"{path.name} is a link that leaves {listing.path}")
        row = {} if isinstance(text, tuple) else _cells(text, kind)
        if isinstance(text, tuple) or isinstance(row, tuple):
            problem = text if isinstance(text, tuple) else row
            assert isinstance(problem, tuple)
            found.broken.append(Entry(None, f"{listing.path.name}, {file}", *problem))
            continue
        several += isinstance(row.get("caption"), list)
        rows.append({**row, "image": file, **({"class_name": classes[number]} if classes else {})})
    labels = kind != "json" and classes is None and are_labels([row["caption"] for row in rows])
    for row, caption in zip(rows, all_lists([row.get("caption") for row in rows]), strict=True):
        row.pop("caption", None)
        row["text" if labels else "caption"] = caption
    where = "beside them" if within is None else "in another folder"
    notes = [f"{listing.path.name}: {len(rows):,} images with a .{kind} file each {where}"]
    notes += _notes_on_texts(listing.path.name, kind, labels, several, bare)
    names = dict.fromkeys(key for row in rows for key in row)
    table, odd = table_of(rows, list(names)) if rows else (pa.table({"image": pa.array([], pa.string())}), {})
    found.others.clear()  # the texts themselves
    notes += [*listing.notes, *found.notes(), *_unread(listing)]
    known: dict[str, str] = {name: name for name in ("image", "class_name") if name in names}
    known |= {"class_name": "text"} if labels else {}
    files = [row["image"] for row in rows]
    return Raw(
        listing.path.name,
        table,
        None,
        found.broken,
        root=listing.path,
        root_fixed=True,
        known=known,
        labels=files,
        notes=notes,
        odd=odd,
    )


def _unread(listing: Listing) -> list[str]:
    read = [name for name in listing.files if name.rpartition(".")[2].lower() in (*TEXT_ENDINGS, "json")]
    return others_note(listing, read)


def _cells(text: str, kind: str) -> dict[str, Any] | tuple[str, str]:
    if kind != "json":
        return {"caption": captions_in(text)}
    found = parsed(text.encode())
    if isinstance(found, dict):
        return {name: value for name, value in found.items() if name not in ("image", "class_name")}
    return found


def _classes(files: Sequence[str]) -> list[str] | None:
    """Return each image's class, its folder's name; `None` unless there are several that are not sides or numbers."""
    tops = [file.split(os.sep)[0] if os.sep in file else "" for file in files]
    names = set(tops)
    if (
        len(names) < 2
        or "" in names
        or len(sides_of_names(names)) == len(names)
        or all(re.fullmatch(r"[\d_-]+", name) for name in names)
    ):
        return None
    return tops
