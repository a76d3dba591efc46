"""Read a folder by its content: the first layout that fits is used, and other files are named in notes.

The order: MMVP-VLM, a metadata file, shards, tables and lists that name its images, a folder of images with one of
texts, folders named after sides, a folder in a folder, images with a text beside each, class folders, images alone.

Not read through `datasets`: paths must stay inside the folder, and unreadable files must be counted without stopping
the load.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from everclip.data.reading.class_in_name import guess
from everclip.data.reading.formats.class_folders import (
    beside_sides,
    read_bare,
    read_class_folders,
    read_every,
)
from everclip.data.reading.formats.class_names import with_class_names
from everclip.data.reading.formats.folder_names import OF_PICTURES, without_masks
from everclip.data.reading.formats.folder_options import FolderOptions
from everclip.data.reading.formats.listing import Listing, listed, notes_without, others_note
from everclip.data.reading.formats.mirb import read_mirb
from everclip.data.reading.formats.mmvp import read_mmvp
from everclip.data.reading.formats.pairs import read_pairs
from everclip.data.reading.formats.parallel_folders import read_parallel
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.side_lists import with_side_lists
from everclip.data.reading.formats.sides import SWITCH, sides_of_names, with_splits
from everclip.data.reading.formats.system_files import brief
from everclip.data.reading.formats.table_folders import METADATA, read_metadata, read_tables
from everclip.data.reading.formats.template_files import templates_in
from everclip.errors import DataError

_DEEPEST = 8
"""Depth of nested folders that are searched for the data."""


def read_folder(path: Path, options: FolderOptions | None = None) -> list[Raw]:
    """Read a folder in the layout that fits its content.

    Args:
        path: the folder.
        options: how to read it.

    Raises:
        DataError: if nothing in it can be read, or several layouts fit.
    """
    options = options or FolderOptions()
    raws = _read(path, options)
    beside = [name for raw in raws for name in raw.read_beside]
    templates = templates_in(path)
    if templates is not None and raws:
        beside.append(Path(templates[1]).name)
        raws[0].notes.append(
            f"{templates[1]}: {len(templates[0]):,} texts around class names, which eval and init-config take"
        )
    for raw in raws if beside else ():
        raw.notes[:] = notes_without(raw.notes, beside)
    if options.sides:
        raws = with_side_lists(raws, path, options.reading.encoding)
    return with_class_names(raws, path, options.reading.encoding, options.columns)


def _read(path: Path, options: FolderOptions) -> list[Raw]:
    listing = listed(path)
    listing.root = options.root
    _refuse_arrow(listing)
    for layout in (read_mmvp, read_mirb, read_metadata, read_tables):
        raws = layout(listing, options)
        if raws is not None:
            return raws
    if listing.folders and listing.pictures and not options.labelled:
        return [read_every(listing)]
    raws = read_parallel(listing, options) if options.labelled else None
    raws = raws or (_sides(listing, options) if options.sides else None)
    raws = raws or _wrapped(listing, options) or _sources_inside(listing, options)
    if raws is None and options.labelled:
        pairs = read_pairs(listing, options)
        raws = None if pairs is None else [pairs]
    if raws is not None:
        return raws
    if _has_class_folders(listing):
        return [read_class_folders(listing)]
    return [_images_alone(listing, options)]


def _refuse_arrow(listing: Listing) -> None:
    """Refuse a folder that `datasets.save_to_disk` wrote.

    Raises:
        DataError: with the code that writes Parquet.
    """
    files = set(listing.files)
    arrow = listing.of_endings(".arrow")
    if not ("dataset_dict.json" in files or (arrow and {"state.json", "dataset_info.json"} & files)):
        return
    save = "d.to_parquet('data.parquet')"
    if "dataset_dict.json" in files:
        save = "[part.to_parquet(f'data-{side}.parquet') for side, part in d.items()]"
    raise DataError(
        f"{listing.path}: a data set that `datasets` saved (save_to_disk). Write it as Parquet, in Python: "
        f"d = datasets.load_from_disk({str(listing.path)!r}); {save}; then give the Parquet as data."
    )


def _sides(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read folders that are named after sides, unless they look like classes."""
    sides = sides_of_names(listing.folders)
    named = [name for name in listing.filled if name in sides] or [
        name for name in sides if _tables_in(listing, name)
    ]
    others = [name for name in listing.filled if name not in named]
    if not named or options.depth >= _DEEPEST:
        return None
    flat = [name for name in named if _only_pictures(listing.path / name)]
    if others and all(_brings_rows(listing, name) for name in listing.filled):
        return None
    if others and (len({sides[name] for name in named}) < 2 or flat):
        listing.notes.append(
            f"{listing.path.name}: {brief(named)} {'is a class' if len(named) == 1 else 'are classes'} and no "
            f"{'side' if len(named) == 1 else 'sides'}, since {brief(others)} hold images as well"
        )
        return None
    inside = [(name, raw) for name in named for raw in _inside(listing, name, options)]
    inside = _labelled(listing, inside) if options.labelled else inside
    found = [(replace(raw, name=f"{name}/{raw.name}"), sides[name]) for name, raw in inside]
    if len({side for _, side in found}) == 1 and listing.folders != named:
        only = f"{listing.path.name}: the only side is {sides[named[0]]} ({brief(named)})"
        found[0][0].notes.append(only)
    if flat and any(raw.unlabelled for raw, _ in found):
        hint = f" {brief(flat)} were taken for sides by their names; if they are classes: {SWITCH}."
        found = [
            (replace(raw, unlabelled=raw.unlabelled + hint) if raw.unlabelled else raw, side)
            for raw, side in found
        ]
    hinted = next((raw for raw, _ in found if raw.class_in_name), None)
    if hinted is not None:
        text, pattern = hinted.unlabelled, hinted.class_in_name
        found = [
            (replace(raw, unlabelled=text, class_in_name=pattern) if raw.unlabelled else raw, side)
            for raw, side in found
        ]
    raws = with_splits(found, [f"{listing.path.name}/{name}" for name, _ in inside])
    raws[0].notes[:0] = beside_sides(listing, named)
    return raws


def _labelled(listing: Listing, inside: list[tuple[str, Raw]]) -> list[tuple[str, Raw]]:
    """Leave out a side without labels if another side has labels: the test images of a competition."""
    bare = [(name, raw) for name, raw in inside if raw.unlabelled]
    if not bare or len(bare) == len(inside):
        return inside
    count = sum(raw.columns.num_rows for _, raw in bare)
    listing.notes.append(
        f"{listing.path.name}: images without a label cannot be learned or measured, not read: {count:,} "
        f"({brief([name for name, _ in bare])}); to use them add a table with the columns `file_name` and `label`"
    )
    return [(name, raw) for name, raw in inside if not raw.unlabelled]


def _brings_rows(listing: Listing, name: str) -> bool:
    """Whether a folder holds shards or its own metadata file; its name is then not a class."""
    inner = listed(listing.path / name)
    return bool(inner.of_endings(".tar")) or any(file in METADATA for file in inner.files)


def _sources_inside(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read folders that each hold shards or a metadata file: several sources, not classes."""
    names = listing.filled
    if len(names) < 2 or options.depth >= _DEEPEST or not all(_brings_rows(listing, n) for n in names):
        return None
    sides = sides_of_names(names) if options.sides else {}
    found = [(name, raw) for name in names for raw in _inside(listing, name, options)]
    inside = with_splits(
        [
            (
                raw if raw.name.startswith(f"{name}/") else replace(raw, name=f"{name}/{raw.name}"),
                sides.get(name),
            )
            for name, raw in found
        ],
        [f"{listing.path.name}/{name}" for name, _ in found],
    )
    inside[0].notes[:0] = [
        f"{listing.path.name}: {brief(names)} hold shards or a metadata file each: all of them are read; to make a "
        "task of each, give the folders as sources of their own",
        *listing.notes,
        *others_note(listing, []),
    ]
    return inside


def _tables_in(listing: Listing, name: str) -> bool:
    """Whether a folder holds tables; they may contain the images or name images elsewhere."""
    return bool(listed(listing.path / name).of_endings(".csv", ".jsonl", ".parquet", ".tsv"))


def _only_pictures(path: Path) -> bool:
    """Whether a folder holds images and nothing else."""
    found = listed(path)
    return bool(found.pictures) and not found.filled and len(found.files) == len(found.pictures)


def _inside(listing: Listing, name: str, options: FolderOptions) -> list[Raw]:
    """Read an inner folder; refuse a link to a folder above.

    Raises:
        DataError: for such a link.
    """
    inner = listing.path / name
    if inner.is_symlink() and Path(os.path.realpath(listing.path)).is_relative_to(os.path.realpath(inner)):
        raise DataError(f"{inner}: a link to a folder above it; remove the link.")
    return _read(inner, options.deeper())


def _wrapped(listing: Listing, options: FolderOptions) -> list[Raw] | None:
    """Read the only folder with content, if it is a wrapper and not a class."""
    if listing.pictures or options.depth >= _DEEPEST:
        return None
    only = listing.filled or [name for name in listing.folders if _tables_in(listing, name)]
    only, beside = without_masks(only)
    if len(only) != 1:
        return None
    inner = listed(listing.path / only[0])
    if not inner.filled and inner.pictures:
        return None
    raws = _inside(listing, only[0], options)
    empty = [name for name in listing.folders if name not in (*only, *beside)]
    notes = listing.notes + others_note(listing, [])
    if beside:
        notes.append(
            f"{listing.path.name}: folders beside the images, not read: {len(beside):,} ({brief(beside)})"
        )
    if empty:
        notes.append(
            f"{listing.path.name}: folders without an image, ignored: {len(empty):,} ({brief(empty)})"
        )
    raws[0].notes[:0] = [f"{listing.path.name}: the data are those of its folder {only[0]}", *notes]
    return raws


def _has_class_folders(listing: Listing) -> bool:
    """Whether the folders are classes; a folder named `images` is not."""
    filled, _ = without_masks(listing.filled)
    if len(filled) == 1 and not listing.pictures:
        return filled[0].lower() not in OF_PICTURES
    return bool(listing.folders) and (bool(listing.filled) or not listing.pictures)


def _images_alone(listing: Listing, options: FolderOptions) -> Raw:
    """Read images without labels.

    Raises:
        DataError: if there are none.
    """
    expected = (
        f"Expected one folder per class, or a file {METADATA[0]} with the columns `file_name` and `caption` or "
        "`label`."
    )
    beside = "".join(f" {note}." for note in [*listing.notes, *others_note(listing, [])])
    if not listing.pictures and not listing.filled:
        raise DataError(f"{listing.path}: holds no image, table or archive. {expected}{beside}")
    unlabelled = f"{listing.path}: holds images without a metadata file. {expected}{beside}"
    raw = (
        replace(read_every(listing), unlabelled=unlabelled)
        if listing.filled
        else read_bare(listing, unlabelled)
    )
    seen = guess(raw.labels or [])
    if seen is None:
        hint = ' If classes stand in the names of the files, say how: "data.class_in_name={class}_#".'
        return replace(raw, unlabelled=unlabelled + hint)
    return replace(raw, unlabelled=unlabelled + seen.sentence(), class_in_name=seen.pattern)
