"""One file that holds samples, read by its ending."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from everclip.data.pictures.remote import RemoteFile
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.text_file import content_ending
from everclip.data.reading.quarantine import DAMAGED, DamagedFileError, Entry
from everclip.data.reading.settings import PLAIN, Reading
from everclip.errors import ConfigError, DataError

TABLES = (".parquet", ".csv", ".tsv", ".jsonl", ".tar")
"""Endings of files that hold samples; read in folders, too."""

NAMED = (".json", ".txt", ".ndjson", ".token", ".lst", ".list")
"""Endings of files that may hold samples; read if the user names them."""

_PACKABLE = (".csv", ".tsv", ".jsonl")
"""Endings that may be followed by `.gz`."""


def is_readable(path: Path) -> bool:
    """Whether a file that the user names can be read, by its ending."""
    return path.suffix.lower() in TABLES or content_ending(path) in (*_PACKABLE, *NAMED)


def read_file(path: Path, reading: Reading = PLAIN) -> Raw:
    """Read a file that holds samples.

    Args:
        path: the file.
        reading: what the user says about tables and text files.

    Raises:
        ConfigError: if its ending is not known.
        DataError: if it cannot be read.
    """
    if not is_readable(path):
        raise ConfigError(
            f"data.source: {path.name!r} is no source; expected a file ending in {', '.join((*TABLES, *NAMED))}."
        )
    try:
        return _read(path, content_ending(path), reading)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def read_part(path: Path, reading: Reading = PLAIN) -> Raw:
    """Read one of several files; a damaged file gives no rows and one entry.

    Raises:
        ConfigError, DataError: as `read_file` does.
    """
    try:
        return read_file(path, reading)
    except DamagedFileError as error:
        return without_rows(path, error)


def without_rows(path: Path | RemoteFile, error: DamagedFileError) -> Raw:
    """Return what a damaged file gives: no rows, and one entry with the reason."""
    entry = Entry(None, path.name, DAMAGED, str(error).removeprefix(f"{path}: "))
    return Raw(path.name, pa.table({}), broken=[entry], root=path.parent)


def _read(path: Path, ending: str, reading: Reading) -> Raw:
    # Imported on demand: the command line must start fast.
    if ending == ".parquet":
        from everclip.data.reading.formats.parquet import read_parquet

        return read_parquet(path)
    if ending in (".jsonl", ".ndjson"):
        from everclip.data.reading.formats.json_rows import read_jsonl

        return read_jsonl(path, reading)
    if ending == ".json":
        from everclip.data.reading.formats.json_rows import read_json

        return read_json(path, reading)
    if ending == ".tar":
        from everclip.data.reading.formats.shards import read_shard

        return read_shard(path, reading.encoding)
    if ending == ".lst":
        from everclip.data.reading.formats.mxnet_lists import read_mxnet_list

        found = read_mxnet_list(path, reading.encoding)
        if found is not None:
            return found
    from everclip.data.reading.formats.text import read_text_table

    return read_text_table(path, reading)
