"""Reading what the user names into canonical columns: `builtin:emoji`, Parquet, CSV, TSV and JSON lines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from everclip.data.facts import facts_of
from everclip.data.images import check_header
from everclip.data.quarantine import Quarantine
from everclip.data.spec import CANONICAL, DataSpec
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class Loaded:
    """What reading gives.

    Attributes:
        table: the usable samples in canonical columns.
        quarantine: the others, with reasons.
        columns: canonical names to those of the source, as given or guessed.
        guesses: one line per guess, for people.
        facts: per row of `table`: `width`, `height` (upright, in pixels), `bytes`, `mode`, `format`, `frames`, `dhash`
            (64-bit difference hash) and `sha256`.
    """

    table: Table
    quarantine: Quarantine
    columns: dict[str, str]
    guesses: tuple[str, ...]
    facts: pa.Table


def read(spec: DataSpec, root: Path | None = None) -> Loaded:
    """Read the data that a `data:` block names.

    Args:
        spec: the block.
        root: folder that relative paths start from.

    Raises:
        ConfigError: for an unknown source or option.
        DataError: for unreadable data; names file, row and column.
    """
    options = {"language": spec.language, "styles": spec.styles, "columns": spec.columns or None}
    given = {key: value for key, value in options.items() if value is not None}
    if len(spec.sources) != 1:
        raise ConfigError("data.source: several sources are not read yet.")
    table = _load(spec.sources[0], given, root)
    facts = facts_of(table.column("image"))
    return Loaded(table, Quarantine(table.name, len(table)), dict(spec.columns), (), facts)


def _load(source: str, options: Mapping[str, Any], root: Path | None) -> Table:
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
    columns = _renamed(columns, mapping)
    if "image" not in columns.column_names:
        raise DataError(
            f"{path}: no column `image` (bytes, or paths below {path.parent}); columns are "
            f"{', '.join(columns.column_names)}. Name it with data.columns.image=NAME."
        )
    columns = _with_text_names(_with_bytes(columns, path))
    _check_texts(columns, path)
    hashes = [hashlib.sha256(value).hexdigest()[:16] for value in columns.column("image").to_pylist()]
    columns = _filled(columns, "image_id", hashes)
    if "id" not in columns.column_names:
        seen: dict[str, int] = {}
        names = []
        for value in hashes:
            seen[value] = seen.get(value, 0) + 1
            names.append(value if seen[value] == 1 else f"{value}-{seen[value]}")
        columns = columns.append_column("id", pa.array(names))
    if "class_key" not in columns.column_names and "class_name" in columns.column_names:
        columns = columns.append_column("class_key", columns.column("class_name"))
    _require_unique_ids(columns, path)
    return columns


def _renamed(columns: pa.Table, mapping: Mapping[str, str]) -> pa.Table:
    """Give columns their canonical names; a column that already had such a name gives way."""
    kept = [
        name for name in dict.fromkeys(columns.column_names) if name not in mapping or mapping[name] == name
    ]
    back = {found: wanted for wanted, found in mapping.items()}
    data = {back.get(name, name): columns.column(columns.column_names.index(name)) for name in kept}
    return pa.table(data)


def _filled(columns: pa.Table, name: str, values: Sequence[str]) -> pa.Table:
    """Fill a column's gaps, or the whole column where it is missing.

    Equal pictures are one picture whatever their rows are called, so that a split cannot part them.
    """
    if name not in columns.column_names:
        return columns.append_column(name, pa.array(values))
    held = columns.column(name).to_pylist()
    filled = [own if given is None else str(given) for given, own in zip(held, values, strict=True)]
    return columns.set_column(columns.column_names.index(name), name, pa.array(filled))


def _check_texts(columns: pa.Table, path: Path) -> None:
    """Refuse captions that are no text, and keywords that are no list of texts."""
    kinds = {"caption": "text", "class_key": "text or whole numbers", "class_name": "text"}
    for name, expected in kinds.items():
        if name in columns.column_names:
            found = columns.column(name).type
            if not (pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_null(found)):
                raise DataError(f"{path}: column {name!r} holds {found}; expected {expected}.")
    if "keywords" in columns.column_names and not pa.types.is_list(columns.column("keywords").type):
        raise DataError(
            f"{path}: column 'keywords' holds {columns.column('keywords').type}; expected lists of texts (Parquet or "
            "JSON lines; a CSV cannot hold them)."
        )


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
        if value is None:
            raise DataError(f"{path}, row {row + 1}: no id. Give every row one, or leave the column out.")
        if value in first:
            raise DataError(f"{path}, row {row + 1}: id {value!r} stands in row {first[value] + 1} already.")
        first[value] = row


def _with_bytes(columns: pa.Table, path: Path) -> pa.Table:
    """Replace image paths by the bytes of the files; a path may not leave the folder of the table."""
    column = columns.column("image")
    if pa.types.is_struct(column.type):
        values = [None if value is None else value.get("bytes") for value in column.to_pylist()]
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        values = column.to_pylist()
    else:
        root = path.parent.resolve()
        values = []
        for row, value in enumerate(column.to_pylist()):
            values.append(_file_bytes(root, value, f"{path}, row {row + 1}"))
    for row, value in enumerate(values):
        if not value:
            raise DataError(f"{path}, row {row + 1}: no image (found {value!r}).")
        name = column[row].as_py()
        check_header(value, f"{path}, row {row + 1}" + (f" ({name})" if isinstance(name, str) else ""))
    place = columns.column_names.index("image")
    return columns.set_column(place, "image", pa.array(values, type=pa.binary()))


def _file_bytes(root: Path, value: Any, where: str) -> bytes:
    try:
        file = (root / str(value)).resolve()
        if not file.is_relative_to(root):
            raise DataError(f"{where}: image path {value!r} leaves the folder {root}.")
        if value is None or not file.is_file():
            raise DataError(f"{where}: image {value!r} is missing (looked for {file}).")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: image path {str(value)[:80]!r} cannot be read ({error}).") from error
