"""Read rows from Python, an iterable of mappings; write their images block by block to a memory-mapped file.

`datasets.Dataset.from_generator` would pickle the iterable to name its cache; nothing is pickled here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from everclip.data.pictures.from_python import KINDS, encoded
from everclip.data.reading.columns import choose
from everclip.data.reading.formats.raw import Raw, table_of
from everclip.data.reading.spill import blocks, spilled
from everclip.errors import DataError

BLOCK = 256

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read_mappings(
    rows: Iterable[Mapping[str, Any]], given: Mapping[str, str], name: str, root: Path | None
) -> Raw:
    """Read rows from Python.

    Args:
        rows: mappings; an image is encoded bytes, a path, a PIL image, or a mapping of `bytes` and `path`.
        given: canonical names to keys of the rows.
        name: shown in messages.
        root: folder that paths start from and may not leave; without it they are used as they are.

    Raises:
        DataError: if there are no rows, one is not a mapping, or none has an image.
    """
    image: str | None = None
    others: list[dict[str, Any]] = []
    notes: list[str] = []

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal image
        for block in blocks(rows, BLOCK):
            for row in block:
                if not isinstance(row, Mapping):
                    raise DataError(f"{name}: a row is of type {type(row).__name__}, expected a mapping.")
            image = image or _image_column(block[0], given, name, notes)
            # Images are large: they go to the file; the other values stay in memory.
            others.extend({str(k): v for k, v in row.items() if k != image} for row in block)
            yield pa.record_batch(
                {"image": pa.array([_picture(row.get(image), name) for row in block], _PICTURE)}
            )

    try:
        images = spilled(batches(), pa.schema([("image", _PICTURE)]))
    except UnicodeEncodeError as error:
        raise DataError(f"{name}: a path is not UTF-8 ({error.object!a}); rename the file.") from error
    if image is None:
        raise DataError(f"{name}: there are no rows.")
    names = dict.fromkeys(key for row in others for key in row)
    try:
        columns, odd = table_of(others, list(names)) if names else (pa.table({}), {})
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name}: a text is not UTF-8 ({error.object[:80]!a}); write it again as UTF-8."
        ) from error
    columns = columns.append_column(image, images.column(0)) if names else images.rename_columns([image])
    confined = root is not None
    return Raw(name, columns, known={"image": image}, root=root, notes=notes, confined=confined, odd=odd)


def _image_column(row: Mapping[str, Any], given: Mapping[str, str], name: str, notes: list[str]) -> str:
    """Return the key of the image, by its name alone: values may have any type."""
    if given.get("image"):
        return given["image"]
    schema = pa.schema([(str(key), pa.string()) for key in row])
    chosen, lines = choose(schema, {}, {}, name)
    if "image" not in chosen:
        raise DataError(f"{name}: no key of the rows is an image (keys: {', '.join(map(str, row))}).")
    notes += [line for line in lines if line.startswith("image = ")]
    return chosen["image"]


def _picture(value: Any, name: str) -> dict[str, Any] | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str | os.PathLike):
        return {"bytes": None, "path": os.fspath(value)}
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        return {"bytes": value.get("bytes"), "path": value.get("path")}
    content = encoded(value, name)
    if content is None:
        raise DataError(f"{name}: an image is of type {type(value).__name__}; expected {KINDS}.")
    return {"bytes": content, "path": None}
