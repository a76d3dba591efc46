"""Tables in a folder: whether they describe its pictures, or merely lie beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from everclip.data.readers.files import read_file
from everclip.data.readers.folder_options import FolderOptions
from everclip.data.readers.foreign import some
from everclip.data.readers.listing import Listing, others_note
from everclip.data.readers.picture_index import (
    PictureIndex,
    holds_pictures,
    named_pictures,
    picture_column,
    unnamed_note,
    with_paths,
    with_sides_of_paths,
)
from everclip.data.readers.raw import Raw
from everclip.data.readers.sides import sides_of, with_splits
from everclip.errors import DataError

METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
_TABLES = (".csv", ".jsonl", ".parquet", ".tsv")


def read_metadata(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read the one metadata file of a folder of pictures.

    Raises:
        DataError: if there are several.
    """
    found = [name for name in METADATA if name in listing.files]
    if len(found) > 1:
        raise DataError(f"{listing.path}: holds {' and '.join(found)}; name the one to read as data.source.")
    if not found:
        return None
    raw = replace(read_file(listing.path / found[0], options.reading), name=f"{listing.path.name}/{found[0]}")
    raw.notes += listing.notes
    if picture_column(raw) is None:
        return [raw]
    index = PictureIndex(listing.path)
    files = named_pictures(raw, index)
    raw.notes += unnamed_note(index, files, found[0])
    raw = raw if options.rooted else with_paths(raw, index, files)
    return [with_sides_of_paths(raw, files) if options.sides else raw]


def read_tables(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read the shards or tables of a folder, or return `None` if they do not describe what is to be read.

    Raises:
        DataError: if there are tables of several kinds.
    """
    shards = _without_companions(listing, listing.of_endings(".tar"), options)
    if shards is not None:
        return shards
    names = [name for name in listing.of_endings(*_TABLES) if name not in _of_folders(listing)]
    if not names:
        return None
    index = PictureIndex(listing.path)
    if not index.files:
        kinds = sorted({Path(name).suffix.lower() for name in names})
        if len(kinds) > 1:
            raise DataError(
                f"{listing.path}: holds files of several kinds ({', '.join(kinds)}); say which with "
                f"data.source={listing.path}/*{kinds[0]}."
            )
        return _sided(
            listing, [(name, read_file(listing.path / name, options.reading)) for name in names], options
        )
    return _describing(listing, names, index, options)


def _without_companions(listing: Listing, tars: Sequence[str], options: FolderOptions) -> list[Raw] | None:
    """Read shards; tables of the same names (as img2dataset writes them) are passed over."""
    if not tars:
        return None
    tables = listing.of_endings(*_TABLES)
    stems = {Path(name).stem for name in tars}
    others = [name for name in tables if Path(name).stem not in stems]
    if others:
        kinds = sorted({Path(name).suffix.lower() for name in (*tars, *others)})
        raise DataError(
            f"{listing.path}: holds files of several kinds ({', '.join(kinds)}); say which with "
            f"data.source={listing.path}/*{kinds[0]}."
        )
    if len(tables) > len(others):
        listing.notes.append(
            f"{listing.path.name}: tables that belong to shards of the same name, not read: {len(tables):,} "
            f"({some(tables)})"
        )
    read = [(name, read_file(listing.path / name, options.reading)) for name in tars]
    listing.notes += others_note(listing, [*tars, *tables])
    return _sided(listing, read, options)


def _of_folders(listing: Listing) -> list[str]:
    """Return the tables that are called after a folder of pictures, as img2dataset writes them."""
    found = [name for name in listing.of_endings(*_TABLES) if Path(name).stem in listing.filled]
    numbered = [name for name in found if Path(name).stem.isdecimal()]
    if numbered:
        note = f"{listing.path.name}: tables that belong to folders of the same name, not read: {len(numbered):,} "
        note += f"({some(numbered)})"
        listing.notes += [] if note in listing.notes else [note]
        listing.told.update(numbered)
    return numbered


def _describing(
    listing: Listing, names: Sequence[str], index: PictureIndex, options: FolderOptions
) -> list[Raw] | None:
    """Read those tables that name pictures of the folder; the others are passed over."""
    found: list[tuple[str, Raw, list[str | None]]] = []
    passed: list[str] = []
    problem: DataError | None = None
    for name in names:
        try:
            raw = read_file(listing.path / name, options.reading)
        except DataError as error:
            problem = problem or error
            listing.notes.append(f"{name}: not read ({error})")
            continue
        files = [] if holds_pictures(raw) else named_pictures(raw, index)
        if holds_pictures(raw) or any(file is not None for file in files):
            found.append((name, raw, files))
        else:
            passed.append(name)
    folders = len(listing.filled) > 1
    named = {file for _, _, files in found for file in files if file is not None}
    if folders and 2 * len(named) < len(index.files) and not any(holds_pictures(raw) for _, raw, _ in found):
        listing.notes += [
            f"{name}: names {len(set(files) - {None}):,} of {len(index.files):,} pictures only, so the folders are "
            f"read; to read it instead give {listing.path / name} as data"
            for name, _, files in found
        ]
        return None
    if not found:
        if listing.filled and not listing.pictures:
            return None  # what the folders hold is read, and the tables are named as lying beside
        if problem is not None:
            raise problem
        return _sided(
            listing, [(name, read_file(listing.path / name, options.reading)) for name in passed], options
        )
    read = [
        (name, raw if holds_pictures(raw) or options.rooted else with_paths(raw, index, files))
        for name, raw, files in found
    ]
    listing.notes += unnamed_note(index, named, "a table" if len(found) > 1 else found[0][0])
    listing.notes += others_note(listing, [name for name, _ in read])
    parts = _sided(listing, read, options)
    if options.sides and all(raw.split is None for raw in parts):
        parts = [
            raw if holds_pictures(raw) else with_sides_of_paths(raw, named_pictures(raw, index))
            for raw in parts
        ]
    return parts


def _sided(listing: Listing, read: Sequence[tuple[str, Raw]], options: FolderOptions) -> list[Raw]:
    said = sides_of(name.rpartition(".")[0] for name, _ in read) if options.sides else {}
    parts = with_splits([(raw, said.get(name.rpartition(".")[0])) for name, raw in read])
    parts[0].notes[:0] = listing.notes
    listing.notes = []
    return parts
