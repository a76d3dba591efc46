"""Read JSON files by their form: lines, COCO, Karpathy's splits, Label Studio, objects, captions by file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from everclip.data.reading.formats.coco import read_coco
from everclip.data.reading.formats.json_columns import rows_of_object
from everclip.data.reading.formats.json_forms import is_pair, json_form, names_a_picture
from everclip.data.reading.formats.json_stream import elements, values
from everclip.data.reading.formats.jsonl import MAX_LINE, NoObjectsError, checked, read_json_lines
from everclip.data.reading.formats.karpathy import read_karpathy
from everclip.data.reading.formats.label_studio import read_label_studio
from everclip.data.reading.formats.labels import SWITCH, are_labels
from everclip.data.reading.formats.raw import Raw, table_of
from everclip.data.reading.formats.sides import side_of_name
from everclip.data.reading.formats.text_file import open_text, text_encoding
from everclip.data.reading.quarantine import Entry
from everclip.data.reading.settings import PLAIN, Reading
from everclip.errors import DataError

_LOOKED_AT = 4  # lines; some may be blank
_HEAD = 1000  # characters


def read_json(path: Path, reading: Reading = PLAIN) -> Raw:
    """Read a `.json` file by its form.

    Raises:
        DataError: if it is not JSON, or its form is unknown.
    """
    encoding = text_encoding(path, reading.encoding)
    if _holds_lines(path, encoding.name):
        raw = read_json_lines(path, reading)
        raw.notes.append(f"{path.name}: read as JSON lines: each line is an object")
        return raw
    raw = read_document(path, encoding.name)
    raw.notes += [encoding.note] if encoding.note else []
    return raw


def read_jsonl(path: Path, reading: Reading = PLAIN) -> Raw:
    """Read a `.jsonl` file, also if it is really one JSON document.

    Raises:
        DataError: if no line holds an object, and it is not a document of a known form.
    """
    try:
        return read_json_lines(path, reading)
    except NoObjectsError:
        encoding = text_encoding(path, reading.encoding)
        if not _is_document(path, encoding.name):
            raise
    raw = read_document(path, encoding.name)
    raw.notes[:0] = [f"{path.name}: no JSON lines, but one JSON document, read as such"]
    raw.notes += [encoding.note] if encoding.note else []
    return raw


def _is_document(path: Path, encoding: str) -> bool:
    """Whether a file begins with an array, or with an object that spans several lines."""
    with open_text(path, encoding) as file:
        start = file.read(1000).lstrip()
    first = start.partition("\n")[0].rstrip()
    return start.startswith("[") or (start.startswith("{") and not first.endswith("}"))


def read_document(path: Path, encoding: str) -> Raw:
    """Read a JSON document by its form.

    Raises:
        DataError: if it is not JSON, or its form is unknown.
    """
    if _follow_each_other(path, encoding):
        note = f"{path.name}: read as JSON objects that follow each other"
        return _rows(path, values(path, encoding), [note])
    form = json_form(path, encoding)
    if form == "coco":
        return read_coco(path, encoding=encoding)
    if form == "karpathy":
        return read_karpathy(path, encoding=encoding)
    if form == "label-studio":
        return read_label_studio(path, encoding)
    if form == "captions-by-file":
        return _by_file(path, encoding)
    if form == "files-by-class":
        rows = (
            {"image": file, "class_name": key} for key, file in elements(path, encoding, arrays_only=True)
        )
        return _rows(path, rows, [f"{path.name}: each key is a class, each value its images"])
    found = iter(_objects(path, encoding))
    first = next(found, None)
    if first is not None:
        return _rows(path, itertools.chain([first], found), [])
    return _rows(
        path,
        iter(rows_of_object(path, encoding)),
        [f"{path.name}: rows are made of the columns of one object"],
    )


def _follow_each_other(path: Path, encoding: str) -> bool:
    """Whether a file begins with two objects."""
    with open_text(path, encoding) as file:
        if not file.read(_HEAD).lstrip().startswith("{"):
            return False
    try:
        first = list(itertools.islice(values(path, encoding), 2))
    except DataError:
        return False
    return len(first) == 2 and all(isinstance(value, dict) for value in first)


def _holds_lines(path: Path, encoding: str) -> bool:
    """Whether the first two lines of a file are separate objects."""
    with open_text(path, encoding) as file:
        lines = (file.readline(MAX_LINE).strip() for _ in range(_LOOKED_AT))
        first, second, *_ = [*(line for line in lines if line), "", ""]
    try:
        return second.startswith("{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _by_file(path: Path, encoding: str) -> Raw:
    rows = [{"image": key, "text": value} for key, value in elements(path, encoding) if names_a_picture(key)]
    if are_labels([row["text"] for row in rows]):
        raw = _rows(path, iter(rows), [f"{path.name}: each key is an image, each value its class ({SWITCH})"])
        return replace(raw, known={"class_name": "text"})
    captions = ({"image": row["image"], "caption": row["text"]} for row in rows)
    return _rows(path, captions, [f"{path.name}: each key is an image, each value its captions"])


def _objects(path: Path, encoding: str) -> Iterator[Any]:
    """Yield the objects of the one array of objects, or of one array per side (`train`, `test`...)."""
    chosen: str | None = None
    for key, element in elements(path, encoding, arrays_only=True):
        row = element if key == "data" else _listed(element)
        if not isinstance(row, dict):
            if key == chosen:
                yield row
            continue
        if side_of_name(key) is not None:
            yield {"split": key, **row}
        elif chosen in (None, key):
            yield row
        else:
            raise DataError(
                f"{path}: holds objects under {chosen!r} and under {key!r}; its form is not known (COCO, Karpathy's "
                "splits, Label Studio, an array of objects). Write the rows as one array, or as JSON lines."
            )
        chosen = key


def _listed(element: Any) -> Any:
    """Convert CoOp's rows (path, label, class name) and pairs (path, class) to objects; return others unchanged."""
    if is_pair(element):
        return {"image": element[0], "class_name": element[1]}
    kinds = [type(value) for value in element] if isinstance(element, list) else []
    if kinds != [str, int, str]:
        return element
    return {"image": element[0], "class_key": element[1], "class_name": element[2]}


def _rows(path: Path, found: Iterator[Any], notes: list[str]) -> Raw:
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    numbers: list[int] = []
    broken: list[Entry] = []
    for number, element in enumerate(found, 1):
        row = checked(element)
        if isinstance(row, dict):
            rows.append(row)
            numbers.append(number)
            names.update(dict.fromkeys(row))
        else:
            broken.append(Entry(number, f"{path.name}, row {number}", *row))
    if not rows:
        raise DataError(
            f"{path}: holds no objects with columns. Expected COCO captions, Karpathy's split, a Label Studio export, "
            'or an array of objects ([{"image": "a.jpg", "caption": "..."}, ...], as to_json(orient="records") writes).'
        )
    columns, odd = table_of(rows, list(names))
    return Raw(path.name, columns, numbers, broken, root=path.parent, notes=notes, odd=odd)
