"""Numbers, texts and structs of MATLAB files (version 5), enough for the label files of data sets. No code is run.

Format: MathWorks, MAT-File Format, "Level 5". Every size is checked against the bytes that are there.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from everclip.errors import DataError

MOST_BYTES = 1 << 25
"""Of a file, and of all that is packed in it together; label files are a few hundred kilobytes."""

_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "<i2",
    4: "<u2",
    5: "<i4",
    6: "<u4",
    7: "<f4",
    9: "<f8",
    12: "<i8",
    13: "<u8",
}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 1, 2, 4, 6, 15
_DEPTH = 8
_FIELDS = 1000

_EMPTY = np.zeros((0, 0))
"""One for all: an empty cell has eight bytes in a file, and millions of them must not have a hundred in memory."""


def read_matlab(path: Path) -> dict[str, Any]:
    """Return the variables of a file: arrays of numbers, texts, lists (cells), lists of mappings (structs).

    Raises:
        DataError: if it is no such file, is damaged, or holds what is not read (objects, sparse or big-endian data).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if len(data) > MOST_BYTES or len(data) < 128 or data[126:128] != b"IM":
        raise DataError(
            f"{path}: is no MATLAB file of version 5 (little-endian, below {MOST_BYTES >> 20} MB)."
        )
    try:
        return _variables(data[128:])
    except (struct.error, zlib.error, ValueError, LookupError) as error:
        raise DataError(
            f"{path}: a damaged MATLAB file, or one of a kind that is not read ({error})."
        ) from error


def _variables(data: bytes) -> dict[str, Any]:
    found, at, left = {}, 0, MOST_BYTES
    while at + 8 <= len(data):
        kind, body, at = _element(data, at)
        if kind == _COMPRESSED:
            body = _unpacked(body, left)
            left -= len(body)
            kind, body, _ = _element(body, 0)
        if kind == _MATRIX:
            name, value = _matrix(body, 0)
            found[name] = value
    return found


def _unpacked(body: bytes, most: int) -> bytes:
    """Return what a compressed element holds.

    Raises:
        ValueError: if it is more than `most` bytes.
    """
    found = zlib.decompressobj().decompress(body, most + 1)
    if len(found) > most:
        raise ValueError(f"all variables together unpack to more than {MOST_BYTES:,} bytes")
    return found


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Return the kind and the bytes of the element at a place, and the place of the next."""
    first, size = struct.unpack_from("<II", data, at)
    if first >> 16:
        kind, size, start, end = first & 0xFFFF, first >> 16, at + 4, at + 8
        if size > 4:
            raise ValueError("a small element of more than four bytes")
    else:
        kind, start = first, at + 8
        end = start + size + (0 if kind == _COMPRESSED else -size % 8)
    if start + size > len(data):
        raise ValueError(f"an element of {size} bytes ends behind the file")
    return kind, data[start : start + size], end


def _matrix(data: bytes, depth: int) -> tuple[str, Any]:
    if depth > _DEPTH:
        raise ValueError("nested too deep")
    if not data:
        return "", _EMPTY
    _, flags, at = _element(data, 0)
    _, dims, at = _element(data, at)
    _, name, at = _element(data, at)
    kind = flags[0]
    shape = np.frombuffer(dims, "<i4")
    count = int(np.prod(shape, dtype=np.int64))
    if count < 0 or count > MOST_BYTES:
        raise ValueError(f"an array of shape {shape.tolist()}")
    if _FIRST_NUMBER <= kind <= _LAST_NUMBER:
        stored, body, _ = _element(data, at)
        value: Any = np.frombuffer(body, _NUMBERS[stored])[:count].reshape(shape, order="F")
    elif kind == _CHAR:
        stored, body, _ = _element(data, at)
        value = body.decode(_TEXTS[stored])
    elif kind == _CELL:
        value = _several(data, at, count, depth)
    elif kind == _STRUCT:
        value = _structs(data, at, count, depth)
    else:
        raise ValueError(f"an array of class {kind}")
    return name.decode("latin-1"), value


def _several(data: bytes, at: int, count: int, depth: int) -> list[Any]:
    found = []
    for _ in range(count):
        kind, body, at = _element(data, at)
        if kind != _MATRIX:
            raise ValueError(f"an element of kind {kind} where an array is expected")
        found.append(_matrix(body, depth + 1)[1])
    return found


def _structs(data: bytes, at: int, count: int, depth: int) -> list[dict[str, Any]]:
    _, width, at = _element(data, at)
    _, names, at = _element(data, at)
    step = int(np.frombuffer(width, "<i4")[0])
    if step < 1 or len(names) > step * _FIELDS:
        raise ValueError(f"fields without names, or more than {_FIELDS:,} of them")
    fields = [names[i : i + step].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), step)]
    values = _several(data, at, count * len(fields), depth)
    rows = (values[i : i + len(fields)] for i in range(0, len(values), len(fields)))
    blank = dict.fromkeys(fields, _EMPTY)  # one for all, as `_EMPTY` is
    return [
        blank if all(value is _EMPTY for value in row) else dict(zip(fields, row, strict=True))
        for row in rows
    ]
