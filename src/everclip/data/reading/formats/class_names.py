"""Read names for numbers and codes of classes from a list beside the data (`classnames.txt`, `synset_words.txt`...)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.reading.columns import choose
from everclip.data.reading.content_columns import columns_by_content
from everclip.data.reading.formats.listing import notes_without
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.system_files import brief
from everclip.data.reading.formats.text_file import small_text
from everclip.errors import ConfigError, DataError

FILES = (
    "classnames.txt", "class_names.txt", "classes.txt", "class_list.txt", "labels.txt", "label_names.txt", "names.txt",
    "categories.txt", "synset_words.txt", "loc_synset_mapping.txt", "synsets.txt", "words.txt", "wnids.txt",
    "classnames.json", "class_names.json", "classes.json", "class_to_idx.json", "cat_to_name.json", "label2id.json",
    "id2label.json", "labels.json", "imagenet_class_index.json", "class_indices.json", "obj.names",
    "predefined_classes.txt",
)  # fmt: skip
"""File names in lower case; the first that fits is used."""

_CODE = re.compile(r"\d+|n\d{8}|(?:class|label|cls|category|id|c)[-_ ]?\d+", re.IGNORECASE)
_MOST_BYTES = 4 * 1024 * 1024


def with_class_names(
    raws: Sequence[Raw],
    folder: Path,
    encoding: str | None = None,
    user_columns: Mapping[str, str] | None = None,
) -> list[Raw]:
    """Give classes that are numbers or WordNet codes their names from a list in the folder or its parent.

    Args:
        raws: parts of the data.
        folder: of the data.
        encoding: of the list, as the user says.
        user_columns: canonical names to columns, as the user says.

    Returns:
        The parts with names and a note, or unchanged.
    """
    chosen = [_label_column(raw, user_columns or {}) for raw in raws]
    columns = [_labels(raw, column) for raw, column in zip(raws, chosen, strict=True)]
    codes = {str(code) for found in columns for code in found or () if code is not None}
    if not codes or not all(map(_CODE.fullmatch, codes)):
        return list(raws)
    for file in _lists(folder):
        if file.name in {raw.name for raw in raws}:
            continue  # these are the rows themselves
        try:
            names = names_in(file, codes, encoding)
        except DataError as error:
            raws[0].notes.append(f"{error}; the classes keep their numbers")
            continue
        if names is not None:
            for raw in raws:
                raw.notes[:] = notes_without(raw.notes, [file.name])
            return [
                _renamed(raw, column, found, names, file)
                for raw, column, found in zip(raws, chosen, columns, strict=True)
            ]
        raws[0].notes.append(
            f"{file.name}: is beside the data, but does not name all of the classes {brief(sorted(codes))}"
        )
    return list(raws)


def _label_column(raw: Raw, user_columns: Mapping[str, str]) -> str | None:
    """Return the column of the classes if no other column names them, else `None`."""
    try:
        chosen, _ = choose(raw.columns.schema, user_columns, raw.known, raw.name)
    except (ConfigError, DataError):
        return None  # reported when the rows are read
    columns_by_content(raw, chosen, user_columns)
    column = chosen.get("class_name")
    if column is None or "class_key" in chosen or raw.columns.num_rows == 0:
        return None
    kind = raw.columns.schema.field(column).type
    return column if pa.types.is_string(kind) or pa.types.is_integer(kind) else None


def _labels(raw: Raw, column: str | None) -> list[Any] | None:
    if column is None:
        return None
    found: list[Any] = raw.columns.column(column).to_pylist()
    return found


def _lists(folder: Path) -> list[Path]:
    found = []
    for place in (folder, folder.resolve().parent):
        try:
            held = {file.name.lower(): file for file in place.iterdir() if file.is_file()}
        except OSError:
            continue
        found += [held[name] for name in FILES if name in held]
    return found


def names_in(file: Path, codes: set[str], encoding: str | None = None) -> dict[str, str] | None:
    """Return the names that a list gives to codes, or `None` if it does not name all of them.

    A list has a name per line (the first belongs to 0, or to 1 where the numbers run from 1 to its length), or a code
    before each name; a JSON file has an object or an array.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        text = small_text(file, _MOST_BYTES, encoding)
        found = _from_json(json.loads(text)) if file.suffix.lower() == ".json" else _from_lines(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file.name}: {error}") from error
    listed, coded = found
    if coded and all(re.fullmatch(r"n\d{8}", code) for code in coded):
        # WordNet codes in order (synset_words.txt) number the classes; a dictionary of all words (words.txt) does not.
        listed = list(coded.values()) if file.stem.lower() != "words" else []
    for names in (coded, _numbered(listed, codes)):
        plain = {_plain(code): name for code, name in names.items()}
        if all(plain.get(_plain(code), "").strip() for code in codes):
            return {code: plain[_plain(code)].strip() for code in codes}
    return None


def _plain(code: str) -> str:
    return str(int(code)) if code.isdecimal() else code


def _numbered(listed: Sequence[str], codes: set[str]) -> dict[str, str]:
    numbers = {code: _number(code) for code in codes}
    held = {number for number in numbers.values() if number is not None}
    if None in numbers.values() or len(held) < len(codes):
        return {}
    start = 1 if min(held) >= 1 and max(held) == len(listed) else 0
    by_number = dict(enumerate(listed, start))
    return {code: by_number[n] for code, n in numbers.items() if n is not None and n in by_number}


def _number(code: str) -> int | None:
    """Return the number at the end of a code (`7`, `class_7`); WordNet codes have none."""
    found = re.search(r"\d+$", code)
    return None if found is None or re.fullmatch(r"n\d{8}", code) else int(found.group())


def _from_lines(text: str) -> tuple[list[str], dict[str, str]]:
    """Return the names by line, and those with a code before them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    coded = {}
    for line in lines:
        parts = re.split(r"[\s,:;]+", line, maxsplit=1)
        if len(parts) == 2 and _CODE.fullmatch(parts[0].rstrip(".)")):
            coded[parts[0].rstrip(".)")] = parts[1].split(",")[0] if parts[0].startswith("n") else parts[1]
    return lines, coded if len(coded) == len(lines) else {}


def _from_json(found: Any) -> tuple[list[str], dict[str, str]]:
    if isinstance(found, list):
        return [str(name) for name in found if isinstance(name, str)], {}
    if not isinstance(found, Mapping):
        return [], {}
    if all(isinstance(value, int) for value in found.values()):  # name -> number
        if len(set(found.values())) < len(found):
            return [], {}  # perhaps a class per image
        return [], {str(value): str(name) for name, value in found.items()}
    coded: dict[str, str] = {}
    for code, value in found.items():
        if isinstance(value, str):
            coded[str(code)] = value
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
            coded[str(code)] = coded[value[0]] = value[1].replace("_", " ")  # number -> [WordNet code, name]
    return [], coded


def _renamed(
    raw: Raw, label: str | None, labels: list[Any] | None, names: Mapping[str, str], file: Path
) -> Raw:
    if label is None or labels is None:
        return raw
    keys = [None if label is None else str(label) for label in labels]
    columns = raw.columns
    # In a headless table the user may have named the column by its number: put the names there.
    name_column = label if raw.headless else "class_name"
    for name, values in (
        ("class_key", keys),
        (name_column, [None if k is None else names[k] for k in keys]),
    ):
        column = pa.array(values, pa.string())
        if name in columns.column_names:
            columns = columns.set_column(columns.column_names.index(name), name, column)
        else:
            columns = columns.append_column(name, column)
    known = {**raw.known, "class_key": "class_key", "class_name": name_column}
    shown = brief(f"{code} = {names[code]}" for code in sorted(names, key=_order))
    note = f"{raw.name}: names of the classes are from {file.parent.name}/{file.name} ({shown})"
    return replace(
        raw,
        columns=columns,
        known=known,
        notes=[*raw.notes, note],
        read_beside=(*raw.read_beside, file.name),
    )


def _order(code: str) -> tuple[int, str]:
    return (int(code), "") if code.isdecimal() else (0, code)
