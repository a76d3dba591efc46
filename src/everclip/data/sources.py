"""Reading what the user names into canonical columns: `builtin:emoji`, Parquet, CSV, TSV and JSON lines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from everclip.data.table import Table
from everclip.errors import ConfigError, DataError, did_you_mean

CANONICAL = (
    "id",
    "image_id",
    "image",
    "caption",
    "keywords",
    "class_key",
    "class_name",
    "concept",
    "language",
    "time",
    "split",
)


def load_source(source: str, options: Mapping[str, Any], root: Path | None = None) -> Table:
    """Read a data source.

    Args:
        source: `builtin:emoji`, or a path to a `.parquet`, `.csv`, `.tsv` or `.jsonl` file.
        options: `language` and `styles` for the built-in; `columns` maps canonical names to those of the file.
        root: folder that relative paths start from, and that image paths must stay inside.

    Raises:
        ConfigError: for an unknown source or option.
        DataError: for unreadable data; names file, row and column.
    """
    if source.startswith("builtin:"):
        return _builtin(source, options)
    path = (root or Path()) / Path(source).expanduser()
    readers = {".parquet": _parquet, ".csv": _text_table, ".tsv": _text_table, ".jsonl": _text_table}
    if path.suffix not in readers:
        raise ConfigError(
            f"data.source: {source!r} is no source; expected builtin:emoji or a file ending in {', '.join(readers)}."
        )
    if not path.is_file():
        raise ConfigError(f"data.source: {path}: no such file.")
    unknown = set(options) - {"columns", "language"}
    if unknown:
        name = sorted(unknown)[0]
        raise ConfigError(f"data.{name}: unknown key.{did_you_mean(name, ['columns', 'language', 'source'])}")
    columns = readers[path.suffix](path)
    return Table(_canonical(columns, options.get("columns", {}), path), name=path.name)


def _builtin(source: str, options: Mapping[str, Any]) -> Table:
    if source != "builtin:emoji":
        raise ConfigError(f"data.source: {source!r} is not known.{did_you_mean(source, ['builtin:emoji'])}")
    from everclip.data.builtin import emoji

    unknown = set(options) - {"language", "styles"}
    if unknown:
        name = sorted(unknown)[0]
        raise ConfigError(f"data.{name}: unknown key.{did_you_mean(name, ['language', 'styles', 'source'])}")
    try:
        columns = emoji.drawings(options.get("language", "en"), options.get("styles"))
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    columns = columns.filter(pa.compute.is_valid(columns.column("name")))
    rename = {"name": "caption", "emoji_id": "concept", "year": "time", "subgroup": "class_key"}
    columns = columns.rename_columns([rename.get(name, name) for name in columns.column_names])
    spoken = [
        str(key).replace("-", " ").replace(" & ", " and ") for key in columns.column("class_key").to_pylist()
    ]
    return Table(columns.append_column("class_name", pa.array(spoken)), name=source)


def _parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}).") from error


def _text_table(path: Path) -> pa.Table:
    from pyarrow import csv, json

    try:
        if path.suffix == ".jsonl":
            return json.read_json(path)
        delimiter = "\t" if path.suffix == ".tsv" else ","
        return csv.read_csv(
            path, parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable {path.suffix[1:]} file ({error}).") from error


def _canonical(columns: pa.Table, mapping: Mapping[str, str], path: Path) -> pa.Table:
    for wanted, found in mapping.items():
        if wanted not in CANONICAL:
            raise ConfigError(
                f"data.columns.{wanted}: not a canonical column.{did_you_mean(wanted, CANONICAL)}"
            )
        if found not in columns.column_names:
            raise DataError(
                f"{path}: no column {found!r} (for {wanted}).{did_you_mean(found, columns.column_names)}"
            )
    back = {found: wanted for wanted, found in mapping.items()}
    columns = columns.rename_columns([back.get(name, name) for name in columns.column_names])
    if "image" not in columns.column_names:
        raise DataError(
            f"{path}: no column `image` (bytes, or paths below {path.parent}); columns are "
            f"{', '.join(columns.column_names)}. Name it with data.columns.image=NAME."
        )
    columns = _with_text_names(_with_bytes(columns, path))
    if "id" not in columns.column_names:
        hashes = [hashlib.sha256(value.as_py()).hexdigest()[:16] for value in columns.column("image")]
        seen: dict[str, int] = {}
        names = []
        for value in hashes:
            seen[value] = seen.get(value, 0) + 1
            names.append(value if seen[value] == 1 else f"{value}-{seen[value]}")
        columns = columns.append_column("id", pa.array(names))
        if "image_id" not in columns.column_names:
            columns = columns.append_column("image_id", pa.array(hashes))
    if "class_key" not in columns.column_names and "class_name" in columns.column_names:
        columns = columns.append_column("class_key", columns.column("class_name"))
    _require_unique_ids(columns, path)
    return columns


def _with_text_names(columns: pa.Table) -> pa.Table:
    """Turn numbers that serve as names into text: label files often number their classes and samples."""
    for name in ("id", "image_id", "caption", "class_key", "class_name", "concept"):
        if name in columns.column_names and pa.types.is_integer(columns.column(name).type):
            place = columns.column_names.index(name)
            columns = columns.set_column(place, name, columns.column(name).cast(pa.string()))
    return columns


def _require_unique_ids(columns: pa.Table, path: Path) -> None:
    """Refuse an id that stands twice: pictures and features are remembered by it."""
    first: dict[Any, int] = {}
    for row, value in enumerate(columns.column("id").to_pylist()):
        if value in first:
            raise DataError(f"{path}, row {row + 1}: id {value!r} stands in row {first[value] + 1} already.")
        first[value] = row


def _with_bytes(columns: pa.Table, path: Path) -> pa.Table:
    """Replace image paths by the bytes of the files; a path may not leave the folder of the table."""
    column = columns.column("image")
    if pa.types.is_struct(column.type):
        values = [value["bytes"].as_py() for value in column]
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return columns
    else:
        root = path.parent.resolve()
        values = []
        for row, value in enumerate(column.to_pylist()):
            file = (root / str(value)).resolve()
            if not file.is_relative_to(root):
                raise DataError(f"{path}, row {row + 1}: image path {value!r} leaves the folder {root}.")
            if not file.is_file():
                raise DataError(f"{path}, row {row + 1}: image {value!r} is missing (looked for {file}).")
            values.append(file.read_bytes())
    place = columns.column_names.index("image")
    return columns.set_column(place, "image", pa.array(values, type=pa.binary()))
