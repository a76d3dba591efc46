"""Bring one file to canonical columns: choose the columns, locate the images, find unusable rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from everclip.data.pictures.location import first_same_location
from everclip.data.reading.box_tables import with_classes_of_predictions, with_row_per_picture
from everclip.data.reading.canonical import (
    odd_values,
    one_row_per_caption,
    plain,
    with_plain_names,
    with_texts,
)
from everclip.data.reading.caption_cells import caption_notes, texts_of_objects, with_caption_lists
from everclip.data.reading.caption_columns import with_caption_columns
from everclip.data.reading.class_in_name import UnlabelledError
from everclip.data.reading.columns import choose, describe, renamed
from everclip.data.reading.content_columns import columns_by_content, picture_column
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.label_hints import label_hint
from everclip.data.reading.one_hot import with_one_hot_classes
from everclip.data.reading.path_matching import is_absolute
from everclip.data.reading.picture_folder import SAMPLE, picture_folder
from everclip.data.reading.quarantine import Entry, Quarantine
from everclip.data.reading.references import Resolver, image_locations
from everclip.data.reading.spec import DataSpec
from everclip.data.reading.split_columns import with_split_column
from everclip.data.reading.written_values import interpreted
from everclip.data.table import replaced
from everclip.errors import DataError


@dataclass
class CanonicalFile:
    """One file in canonical columns.

    Attributes:
        columns: `image` holds positions among `pictures`.
        pictures: of type `everclip.data.pictures.location.PLACE`, one per row of the file.
        origin: each row's position in the file.
        broken: rows that are set aside, with reason and detail.
    """

    raw: Raw
    columns: pa.Table
    pictures: pa.ChunkedArray
    origin: Sequence[int]
    broken: dict[int, tuple[str, str]]

    def entries(self, broken: Mapping[int, tuple[str, str]], start: int) -> list[Entry]:
        """Return the quarantine's entries of this file, in order of its rows.

        Args:
            broken: positions among the rows of all files.
            start: position of this file's first row among them.
        """
        mine = list(self.raw.broken)
        for position, row in enumerate(self.origin):
            if start + position in broken:
                found = broken[start + position]
                place = self.pictures[row]
                path = place["path"].as_py() if place["offset"].as_py() is None else None
                mine.append(Entry(self.raw.number(row), self.raw.row_name(row), *found, path=path or ""))
        return sorted(mine, key=lambda entry: entry.row or 0)


def choose_columns(raw: Raw, spec: DataSpec) -> tuple[Raw, dict[str, str], list[str]]:
    """Return a file, its columns by canonical name, and one line per guess.

    Raises:
        ConfigError: for an unknown canonical name.
        DataError: for a column that does not exist, or if two columns fit.
    """
    names, lines = choose(raw.columns.schema, spec.columns, raw.known, raw.name)
    lines += columns_by_content(raw, names, spec.columns)
    raw = with_split_column(raw, names, spec.columns, lines)
    raw, classes = with_one_hot_classes(raw, names, spec.columns)
    lines += classes
    raw = with_row_per_picture(with_classes_of_predictions(raw, names, lines), names, lines)
    return with_caption_columns(raw, names, spec.columns, lines), names, lines


@dataclass(frozen=True)
class ImageFolders:
    """Folders of the image files; `None`: as the table says.

    Attributes:
        root: folder that paths are relative to.
        downloads: folder of downloaded files.
    """

    root: Path | None = None
    downloads: Path | None = None


def one_file(
    raw: Raw, names: Mapping[str, str], spec: DataSpec, places: ImageFolders, labelled: bool
) -> CanonicalFile:
    """Bring one file to canonical columns; add notes for people to `raw.notes`.

    Raises:
        DataError: for data without images, or without captions and classes if these are needed.
    """
    _require(names, raw, labelled)
    columns, unread = plain(renamed(raw.columns, names))
    resolver = Resolver(
        _start(raw, columns.column("image"), places.root),
        places.downloads,
        places.root if raw.root_fixed else None,
    )
    pictures, missing = image_locations(columns.column("image"), resolver, raw.name)
    raw.notes += [f"{raw.name}: {line}" for line in resolver.notes()]
    columns = replaced(columns, "image", first_same_location(pictures))
    columns, written, errors = interpreted(columns, raw.name)
    columns, objects, odd = texts_of_objects(columns, raw.name)
    columns, listed = with_caption_lists(columns, raw.name)
    columns, origin = one_row_per_caption(columns, raw.name)
    flaws = [(row, *flaw) for row, flaw in raw.flaws.items()]
    unusable = (*missing, *unread, *flaws, *errors, *odd, *odd_values(raw.odd, names))
    by_row = {row: (reason, detail) for row, reason, detail in unusable}
    broken = {position: by_row[row] for position, row in enumerate(origin) if row in by_row}
    columns, problems = with_plain_names(columns, raw.name, raw.textual)
    broken |= {i: (reason, detail) for i, reason, detail in problems if i not in broken}
    raw.notes += [*written, *objects, *listed, *caption_notes(columns, raw.name)]
    if labelled:
        columns, problems = with_texts(columns, broken)
        broken |= {i: (reason, detail) for i, reason, detail in problems if i not in broken}
    for name, value in (("split", raw.split), ("language", spec.language)):
        if value is not None and name not in columns.column_names:
            columns = columns.append_column(name, pa.array([value] * columns.num_rows, pa.string()))
    if "class_key" not in columns.column_names and "class_name" in columns.column_names:
        columns = columns.append_column("class_key", columns.column("class_name"))
    return CanonicalFile(raw, columns, pictures, origin, broken)


def _start(raw: Raw, images: pa.ChunkedArray, root: Path | None) -> Path | None:
    """Return the folder that paths start from and may not leave; `None` if they are used as they are."""
    if not raw.confined:
        return None
    if raw.root_fixed or root is not None or raw.root is None or not pa.types.is_string(images.type):
        return raw.root if raw.root_fixed or root is None else root
    step = max(1, len(images) // SAMPLE)
    paths = [v for v in images.take(pa.array(range(0, len(images), step), pa.int64())).to_pylist() if v]
    folder, line = picture_folder(raw.root, [v for v in paths if "://" not in v and not is_absolute(v)])
    raw.notes += [f"{raw.name}: {line}"] if line else []
    return folder


def _of_paths_alone(raw: Raw) -> str:
    """Return a sentence about a list that holds nothing but image names."""
    if not raw.textual or len([name for name in raw.columns.column_names if name != "image"]) != 1:
        return ""
    return (
        " Its lines name images and nothing else: give the folder of the images, whose folders are the classes and "
        "whose lists called train, val or test are the sides."
    )


def _require(names: Mapping[str, str], raw: Raw, labelled: bool) -> None:
    """Refuse data without images, or with neither captions nor classes if these are needed."""
    held = describe(raw.columns.column_names)
    if raw.broken and not raw.columns.num_rows:
        # Columns are known from rows: without rows there are no columns to name.
        raise DataError(Quarantine(raw.name, len(raw.broken), tuple(raw.broken)).table())
    if raw.broken:
        held += (
            f" ({Quarantine(raw.name, raw.columns.num_rows + len(raw.broken), tuple(raw.broken)).summary()})"
        )
    # A wrong guess about the file may be the reason for a missing column.
    guessed = "".join(f"\n  ({line})" for line in raw.notes[:3])
    if "image" not in names:
        near = picture_column(raw.columns, names)
        remedy = (
            f"The cells of {near!r} name images: say data.columns.image={near}."
            if near is not None
            else "Name it with data.columns.image=NAME."
        )
        if len(raw.columns.column_names) == 1 and raw.textual:
            remedy = "There is one column: say what separates the cells with data.separator=CHARACTER."
        elif labelled and not {"caption", "class_name", "class_key"} & set(names):
            remedy += " Say also which column holds texts: data.columns.caption=NAME or data.columns.class_name=NAME."
        raise DataError(
            f"{raw.name}: no column `image` (bytes, paths or URLs); columns are {held}. {remedy}{guessed}"
        )
    if labelled and not {"caption", "class_name", "class_key"} & set(names):
        if raw.class_in_name:
            raise UnlabelledError(raw.unlabelled, raw.class_in_name)
        raise DataError(
            raw.unlabelled
            or f"{raw.name}: nothing to learn from: neither captions nor classes; columns are {held}. Name one "
            'with data.columns.caption=NAME (several: "NAME, OTHER") or data.columns.class_name=NAME.'
            + f"{_of_paths_alone(raw)}{label_hint(raw, names)}{guessed}"
        )
