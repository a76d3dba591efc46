"""A folder of pictures beside a folder of texts with the same names: `images/1.jpg` with `captions/1.txt`."""

from __future__ import annotations

from dataclasses import replace

from everclip.data.readers.folder_names import OF_PICTURES
from everclip.data.readers.folder_options import FolderOptions
from everclip.data.readers.foreign import some
from everclip.data.readers.listing import Listing, listed, others_note
from everclip.data.readers.pairs import read_pairs
from everclip.data.readers.picture_index import with_sides_of_paths
from everclip.data.readers.raw import Raw
from everclip.data.readers.side_lists import with_side_lists

_MOST_FOLDERS = 20
"""Folders without pictures that are looked into for texts."""

_LISTS = "ImageSets/Main"
"""Where VOC has its lists of sides."""


def read_parallel(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read the one folder of pictures with the folder that holds a text for at least half of them, or return `None`.

    Raises:
        DataError: for objects of several classes in every picture.
    """
    named = [name for name in listing.filled if name.lower() in OF_PICTURES]
    pictures = named if len(named) == 1 else listing.filled
    others = [name for name in listing.folders if name not in listing.filled]
    if len(pictures) != 1 or listing.pictures or len(others) > _MOST_FOLDERS:
        return None
    for name in others:
        inner = listed(listing.path / pictures[0])
        inner.root = listing.root
        raw = read_pairs(inner, options, listing.path / name)
        if raw is not None:
            return [_named(listing, raw, pictures[0], name, options)]
    return None


def _named(listing: Listing, raw: Raw, pictures: str, texts: str, options: FolderOptions) -> Raw:
    """Return the rows under the name of the folder, with their sides and with lines about what lies beside."""
    name = listing.path.name
    notes = [f"{name}: the pictures are in {pictures}/, what they show is in {texts}/", *listing.notes]
    beside = [folder for folder in listing.folders if folder not in (pictures, texts)]
    if beside:
        notes.append(f"{name}: folders beside the pictures, not read: {len(beside):,} ({some(beside)})")
    raw = replace(raw, name=name, notes=[*notes, *others_note(listing, list(raw.read_beside)), *raw.notes])
    if not options.sides:
        return raw
    if (listing.path / _LISTS).is_dir():
        (raw,) = with_side_lists([raw], listing.path / _LISTS, options.reading.encoding)
    return with_sides_of_paths(raw, raw.labels)
