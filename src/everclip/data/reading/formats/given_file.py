"""A table or list that the user names by itself, whose pictures lie beside it and are called by their ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from everclip.data.reading.columns import choose
from everclip.data.reading.content_columns import columns_by_content, picture_column
from everclip.data.reading.formats.files import read_file
from everclip.data.reading.formats.picture_index import (
    PictureIndex,
    holds_pictures,
    named_pictures,
    with_paths,
    with_picture_column,
)
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.stem_lists import ENDINGS, read_stem_list
from everclip.data.reading.picture_folder import BESIDE
from everclip.data.reading.settings import Reading
from everclip.errors import ConfigError, DataError


def read_given(path: Path, reading: Reading, root: Path | None, columns: Mapping[str, str]) -> Raw:
    """Read a file; where no column names pictures, look for pictures that are called as its cells are.

    Args:
        path: the file.
        reading: what the user says about tables and text files.
        root: folder of the pictures, as the user says.
        columns: canonical names to columns, as the user says.

    Raises:
        ConfigError, DataError: as `read_file` does.
    """
    problem: DataError | None = None
    raw: Raw | None = None
    try:
        raw = read_file(path, reading)
        if _has_pictures(raw, columns):
            return raw
    except DataError as error:
        if path.suffix.lower() not in ENDINGS:
            raise
        problem = error
    index = PictureIndex(root or (path.parent.parent if path.parent.name.lower() in BESIDE else path.parent))
    if index.files:
        named = read_stem_list(path, index, reading.encoding)
        if named is None and raw is not None:
            named = _by_ids(raw, index)
        raw = raw if named is None else named
    if raw is None:
        raise problem or DataError(f"{path}: cannot be read.")
    return raw


def _has_pictures(raw: Raw, given: Mapping[str, str]) -> bool:
    """Whether it is known which column is that of the pictures; also where the question is one for the user."""
    if not raw.columns.num_rows or holds_pictures(raw):
        return True
    try:
        chosen, _ = choose(raw.columns.schema, given, raw.known, raw.name)
    except (ConfigError, DataError):
        return len(raw.columns.column_names) > 1  # one column: a list whose names nothing separates yet
    columns_by_content(raw, chosen, given)
    # Paths under an unknown name are asked about.
    return "image" in chosen or picture_column(raw.columns, chosen) is not None


def _by_ids(raw: Raw, index: PictureIndex) -> Raw | None:
    found = with_picture_column(raw, index)
    column = found.known.get("image")
    return None if column is None else with_paths(found, index, column, named_pictures(found, index, column))
