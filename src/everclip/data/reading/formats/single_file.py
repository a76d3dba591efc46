"""Read a table or list that the user names; ids in it may name images beside it."""

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


def read_single_file(path: Path, reading: Reading, root: Path | None, columns: Mapping[str, str]) -> Raw:
    """Read a file; if no column names images, search for images whose names are in its cells.

    Args:
        path: the file.
        reading: what the user says about tables and text files.
        root: folder of the images, as the user says.
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


def _has_pictures(raw: Raw, user_columns: Mapping[str, str]) -> bool:
    """Whether the column of the images is known, or the user must choose it."""
    if not raw.columns.num_rows or holds_pictures(raw):
        return True
    try:
        chosen, _ = choose(raw.columns.schema, user_columns, raw.known, raw.name)
    except (ConfigError, DataError):
        return len(raw.columns.column_names) > 1  # one column: the separator may be unknown
    columns_by_content(raw, chosen, user_columns)
    # For paths in a column with an unknown name, the user is asked.
    return "image" in chosen or picture_column(raw.columns, chosen) is not None


def _by_ids(raw: Raw, index: PictureIndex) -> Raw | None:
    found = with_picture_column(raw, index)
    column = found.known.get("image")
    return None if column is None else with_paths(found, index, column, named_pictures(found, index, column))
