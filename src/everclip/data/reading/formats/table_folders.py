"""Read tables in a folder, if they describe its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from everclip.data.reading.columns import choose, describe
from everclip.data.reading.formats.caption_lists import lists_of
from everclip.data.reading.formats.detections import SeveralClassesError
from everclip.data.reading.formats.files import read_file, read_part
from everclip.data.reading.formats.folder_options import FolderOptions
from everclip.data.reading.formats.listing import Listing, listed, others_note
from everclip.data.reading.formats.picture_index import (
    PictureIndex,
    has_labels,
    holds_pictures,
    named_pictures,
    picture_column,
    unnamed_note,
    with_paths,
    with_picture_column,
    with_sides_of_paths,
)
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.sides import side_of_name, sides_of_names, with_splits
from everclip.data.reading.formats.stem_lists import read_stem_list, stem_lists_of
from everclip.data.reading.formats.system_files import brief
from everclip.errors import DataError

METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
_TABLES = (".csv", ".jsonl", ".parquet", ".tsv")


def read_metadata(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read the one metadata file of a folder of images.

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
    column = picture_column(raw, options.columns)
    if column is None:
        return [raw]
    index = PictureIndex(listing.path)
    files = named_pictures(raw, index, column)
    raw.notes += unnamed_note(index, files, found[0])
    raw = raw if options.root is not None else with_paths(raw, index, column, files)
    return [with_sides_of_paths(raw, files) if options.sides else raw]


def read_tables(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read the shards or tables of a folder, or return `None` if they do not describe its data.

    Raises:
        DataError: if there are tables of several formats.
    """
    shards = _without_companions(listing, listing.of_endings(".tar"), options)
    if shards is not None:
        return shards
    tables = [name for name in listing.of_endings(*_TABLES) if name not in _named_after_folders(listing)]
    lists = lists_of(listing) if listing.pictures or listing.filled else []
    names = [*tables, *lists]
    folders = len(listing.filled) > 1 and not _are_flat_sides(listing)  # their names are the classes
    texts = stem_lists_of(listing, lists) if not folders and (listing.pictures or listing.filled) else []
    if not names and not texts:
        return None
    index = PictureIndex(listing.path)
    encoding = options.reading.encoding
    names += [name for name in texts if read_stem_list(listing.path / name, index, encoding) is not None]
    if not names:
        return None
    if not index.files and not tables:
        return None  # a list without an image to name: `dataset_infos.json` beside `data/*.parquet`
    if not index.files:
        names = tables
        kinds = sorted({Path(name).suffix.lower() for name in names})
        if len(kinds) > 1:
            raise DataError(
                f"{listing.path}: holds files of several kinds ({', '.join(kinds)}); say which with "
                f"data.source={listing.path}/*{kinds[0]}."
            )
        return _with_sides(
            listing, [(name, read_part(listing.path / name, options.reading)) for name in names], options
        )
    return _tables_of_images(listing, names, index, options)


def _without_companions(listing: Listing, tars: Sequence[str], options: FolderOptions) -> list[Raw] | None:
    """Read shards; skip tables with the same names, as img2dataset writes them."""
    if not tars:
        return None
    tables = listing.of_endings(*_TABLES)
    stems = {Path(name).stem for name in tars}
    others = [name for name in tables if Path(name).stem not in stems]
    samples = [name for name in others if name.lower().endswith(".parquet")]
    if samples:
        raise DataError(
            f"{listing.path}: holds files of several kinds (.parquet, .tar); say which with "
            f"data.source={listing.path}/*.tar."
        )
    companions = [name for name in tables if name not in others]
    if companions:
        listing.notes.append(
            f"{listing.path.name}: tables that belong to shards of the same name, not read: {len(companions):,} "
            f"({brief(companions)})"
        )
    read = [(name, read_part(listing.path / name, options.reading)) for name in tars]
    listing.notes += others_note(listing, [*tars, *companions])
    return _with_sides(listing, read, options)


def _named_after_folders(listing: Listing) -> list[str]:
    """Return the tables with the name of a folder of images, as img2dataset writes them."""
    found = [name for name in listing.of_endings(*_TABLES) if Path(name).stem in listing.filled]
    numbered = [name for name in found if Path(name).stem.isdecimal()]
    if numbered:
        note = f"{listing.path.name}: tables that belong to folders of the same name, not read: {len(numbered):,} "
        note += f"({brief(numbered)})"
        listing.notes += [] if note in listing.notes else [note]
        listing.mentioned.update(numbered)
    return numbered


@dataclass(frozen=True)
class _Table:
    """A table that names images of the folder, or contains images.

    Attributes:
        name: of the file.
        raw: its rows.
        column: that names the images; `None` if the table contains them.
        files: the images of the folder that its rows name.
    """

    name: str
    raw: Raw
    column: str | None
    files: tuple[str | None, ...] = ()

    @property
    def named(self) -> set[str]:
        return {file for file in self.files if file is not None}

    @property
    def has_captions(self) -> bool:
        try:
            chosen, _ = choose(self.raw.columns.schema, {}, self.raw.known, self.raw.name)
        except DataError:
            return False
        return "caption" in chosen


def _tables_of_images(
    listing: Listing, names: Sequence[str], index: PictureIndex, options: FolderOptions
) -> list[Raw] | None:
    """Read the tables that name images of the folder; skip the others."""
    folders = len(listing.filled) > 1 and not _are_flat_sides(listing)
    found: list[_Table] = []
    problems: list[DataError] = []
    for name in names:
        if "submission" in name.lower():  # a form for submissions: its labels are placeholders
            continue
        try:
            table = _table(listing.path / name, name, index, options, folders)
        except DataError as error:
            problems.append(error)
            listing.notes.append(f"{name}: not read ({error})")
            continue
        found += [] if table is None else [table]
    found = _one_of_each(listing, _labelled_tables(listing, found, index, options), options)
    named = set[str]().union(*(table.named for table in found))
    labels = [table for table in found if table.column is not None and not table.has_captions]
    apart = folders or _leave_class_folders(index, named)
    if apart and 2 * len(named) < len(index.files) and found and len(labels) == len(found):
        listing.notes += [
            f"{table.name}: names {len(table.named):,} of {len(index.files):,} images only, so the folders are "
            f"read; to read it instead give {listing.path / table.name} as data"
            for table in found
        ]
        return None
    refused = next((error for error in problems if isinstance(error, SeveralClassesError)), None)
    if not found and not folders and refused is not None:
        raise refused
    if not found:
        return _without_pictures(listing, names, problems, options)
    return _with_pictures(listing, found, index, options)


def _labelled_tables(
    listing: Listing, found: Sequence[_Table], index: PictureIndex, options: FolderOptions
) -> list[_Table]:
    """Leave out tables that name images without labels, unless there are no others.

    The test images of a competition are listed in such tables.
    """
    unlabelled = [table for table in found if not has_labels(table.raw, options.columns)]
    named = set[str]().union(*(table.named for table in unlabelled))
    if len(unlabelled) == len(found) and 2 * len(named) >= len(index.files):
        return list(found)  # the error names the columns
    for table in unlabelled:
        if len(table.named) < 2:  # chance
            continue
        listing.mentioned.add(table.name)
        shown = describe(table.raw.columns.column_names[:8])
        listing.notes.append(
            f"{table.name}: names {len(table.named):,} images and holds no captions or classes that are known "
            f"(columns: {shown}), not read"
        )
    return [table for table in found if table not in unlabelled]


def _leave_class_folders(index: PictureIndex, named: set[str]) -> bool:
    """Whether several folders hold images that no table names."""
    left = {file.rpartition("/")[0] for file in index.files} - {file.rpartition("/")[0] for file in named}
    return len(left) > 1


def _are_flat_sides(listing: Listing) -> bool:
    """Whether the folders are sides that hold only images (`train/1.jpg`), so that they are not classes."""
    return all(side_of_name(name) and not listed(listing.path / name).filled for name in listing.filled)


def _without_pictures(
    listing: Listing, names: Sequence[str], problems: Sequence[DataError], options: FolderOptions
) -> list[Raw] | None:
    """Read tables whose images do not exist, so that each row is set aside with the reason.

    If folders hold images, other tables are not data; they are named as unread files.
    """
    if len(listing.filled) > 1:
        return None
    tables = [name for name in names if Path(name).suffix.lower() in _TABLES and "/" not in name]
    if problems and tables and not listing.filled:
        raise problems[0]
    read = []
    for name in tables:
        try:
            read.append((name, read_file(listing.path / name, options.reading)))
        except DataError:
            continue  # already reported
    meant = [(name, raw) for name, raw in read if picture_column(raw, options.columns) is not None]
    if not meant and not listing.filled:
        meant = read  # the error names their columns
    return _with_sides(listing, meant, options) if meant else None


def _table(
    path: Path, name: str, index: PictureIndex, options: FolderOptions, folders: bool
) -> _Table | None:
    """Read a table; `None` if it names no image of the folder."""
    stems = None if folders else read_stem_list(path, index, options.reading.encoding)
    raw = read_file(path, options.reading) if stems is None else stems
    if holds_pictures(raw):
        return _Table(name, raw, None)
    if stems is not None:
        return _Table(name, raw, "1", tuple(raw.columns.column("1").to_pylist()))
    # Folder names are class names; a list without column names mostly holds class numbers.
    column = None if folders and raw.headless else picture_column(raw, options.columns)
    if column is None and not folders:
        raw = with_picture_column(raw, index)
        column = raw.known.get("image")
    if column is None:
        return None
    table = _Table(name, raw, column, tuple(named_pictures(raw, index, column)))
    return table if table.named else None


def _one_of_each(listing: Listing, found: Sequence[_Table], options: FolderOptions) -> list[_Table]:
    """Leave out tables that describe the images of another table again, unless their names give different sides."""
    sides = sides_of_names(table.name.rpartition(".")[0] for table in found) if options.sides else {}

    def side(table: _Table) -> str | None:
        return sides.get(table.name.rpartition(".")[0])

    def rank(table: _Table) -> tuple[bool, bool, bool]:
        return "split" not in table.raw.columns.column_names, not table.has_captions, side(table) is None

    kept: list[_Table] = []
    for table in sorted(found, key=rank):
        again = next(
            (
                other
                for other in kept
                if 2 * len(table.named & other.named) > len(table.named)
                and side(table) in (None, side(other))
            ),
            None,
        )
        if again is None:
            kept.append(table)
            continue
        listing.mentioned.add(table.name)
        listing.notes.append(
            f"{table.name}: not read, since {again.name} names the same images; to read it instead give "
            f"{listing.path / table.name} as data"
        )
    return sorted(kept, key=lambda table: table.name)


def _with_pictures(
    listing: Listing, found: Sequence[_Table], index: PictureIndex, options: FolderOptions
) -> list[Raw]:
    """Return the rows of the tables, with paths of their images and the sides in names."""
    named = set[str]().union(*(table.named for table in found))
    read = []
    for table in found:
        moved = table.raw
        if table.column is not None and options.root is None:
            moved = with_paths(table.raw, index, table.column, table.files)
        read.append((table.name, moved))
    listing.notes += unnamed_note(index, named, "a table" if len(found) > 1 else found[0].name)
    listing.notes += others_note(listing, [table.name for table in found])
    parts = _with_sides(listing, read, options)
    if not options.sides:
        return parts
    # A table without a side in its name may name images in folders of sides.
    folders = sides_of_names(listing.filled)
    return [with_sides_of_paths(raw, table.files, folders) for raw, table in zip(parts, found, strict=True)]


def _with_sides(listing: Listing, read: Sequence[tuple[str, Raw]], options: FolderOptions) -> list[Raw]:
    sides = sides_of_names(name.rpartition(".")[0] for name, _ in read) if options.sides else {}
    parts = with_splits([(raw, sides.get(name.rpartition(".")[0])) for name, raw in read])
    parts[0].notes[:0] = listing.notes
    listing.notes = []
    return parts
