"""Read a folder of images beside a folder of texts with the same names: `images/1.jpg` with `captions/1.txt`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from everclip.data.reading.formats.folder_names import OF_PICTURES
from everclip.data.reading.formats.folder_options import FolderOptions
from everclip.data.reading.formats.listing import Listing, ending_of, listed, others_note
from everclip.data.reading.formats.pairs import TEXT_ENDINGS, read_pairs
from everclip.data.reading.formats.picture_index import with_sides_of_paths
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.side_lists import with_side_lists
from everclip.data.reading.formats.system_files import brief

_MOST_FOLDERS = 20
"""Folders without images that are searched for texts."""

_LISTS = "ImageSets/Main"
"""The folder of VOC's lists of sides."""


def read_parallel(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read a folder of images and the folder with texts for at least half of them, or return `None`.

    Raises:
        DataError: if every image shows objects of several classes.
    """
    named = [name for name in listing.filled if name.lower() in OF_PICTURES]
    pictures = named if len(named) == 1 else listing.filled
    others = [name for name in listing.folders if name not in listing.filled]
    if len(pictures) != 1 or listing.pictures or len(others) > _MOST_FOLDERS:
        return None
    found: dict[str, Raw] = {}
    for name in others:
        inner = listed(listing.path / pictures[0])
        inner.root = listing.root
        raw = read_pairs(inner, options, listing.path / name)
        if raw is not None:
            found[name] = raw
        elif texts := [file for file in listed(listing.path / name).files if ending_of(file) in TEXT_ENDINGS]:
            listing.notes.append(
                f"{listing.path.name}: the {len(texts):,} texts of {name}/ do not have the names of the images of "
                f"{pictures[0]}/ ({texts[0]})"
            )
    captioned = [name for name, raw in found.items() if "caption" in raw.columns.column_names]
    if not found:
        return None
    if len(captioned) > 1:
        raw = _joined([found[name] for name in captioned])
        return [_named(listing, raw, pictures[0], captioned, options)]
    name = (captioned or list(found))[0]
    return [_named(listing, found[name], pictures[0], [name], options)]


def _joined(raws: Sequence[Raw]) -> Raw:
    """Return the rows of the first part with the captions of all parts."""
    texts: dict[str, list[str]] = {}
    for raw in raws:
        for file, held in zip(raw.labels or (), raw.columns.column("caption").to_pylist(), strict=True):
            texts.setdefault(file, []).extend([held] if isinstance(held, str) else held or [])
    first = max(raws, key=lambda raw: raw.columns.num_rows)
    captions = pa.array([texts[file] for file in first.labels or ()], pa.list_(pa.string()))
    columns = first.columns.set_column(first.columns.column_names.index("caption"), "caption", captions)
    notes = dict.fromkeys(note for raw in raws for note in raw.notes)
    return replace(first, columns=columns, broken=[e for raw in raws for e in raw.broken], notes=list(notes))


def _named(listing: Listing, raw: Raw, pictures: str, texts: Sequence[str], options: FolderOptions) -> Raw:
    """Return the rows with the folder's name, their sides, and notes about other folders."""
    name = listing.path.name
    notes = [
        f"{name}: the images are in {pictures}/, their texts are in {'/ and '.join(texts)}/",
        *listing.notes,
    ]
    beside = [folder for folder in listing.folders if folder not in (pictures, *texts)]
    if beside:
        notes.append(f"{name}: folders beside the images, not read: {len(beside):,} ({brief(beside)})")
    raw = replace(raw, name=name, notes=[*notes, *others_note(listing, list(raw.read_beside)), *raw.notes])
    if not options.sides:
        return raw
    if (listing.path / _LISTS).is_dir():
        (raw,) = with_side_lists([raw], listing.path / _LISTS, options.reading.encoding)
    return with_sides_of_paths(raw, raw.labels)
