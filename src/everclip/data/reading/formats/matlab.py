"""Read numbers, texts and structs of MATLAB files (version 5), as in label files of data sets. No code is run.

`scipy` reads the values. Before that, every type and size that a file states is checked: `scipy` allocates the stated
size, so a small file could fill the memory, and an unknown data type crashes the process.

Format: MathWorks, MAT-File Format, "Level 5".
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from everclip.errors import DataError

MOST_BYTES = 1 << 25
"""Limit of a file, and of all its content after decompression; label files have a few hundred kilobytes."""

MOST_ARRAYS = 1 << 19
"""Arrays inside cells and structs: an empty one has 8 bytes in a file and more than 100 in memory."""

_HEADER = 128
_MATRIX, _COMPRESSED, _FLAGS, _SHAPE = 14, 15, 6, 5
_CELL, _STRUCT, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 1, 2, 4, 6, 15
_NUMBERS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 12, 13})
_TEXTS = frozenset({1, 2, 4, 16, 17, 18})
"""Data types of numbers, and of texts."""

_COMPLEX = 0x08
_DEPTH = 8
_FIELDS = 1000


def read_matlab(path: Path) -> dict[str, Any]:
    """Return the variables of a file: arrays of numbers, texts, lists (cells), lists of mappings (structs).

    Raises:
        DataError: if it is not such a file, is damaged, or holds unsupported data (objects, functions, sparse, complex
            or big-endian data).
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not _HEADER <= len(data) <= MOST_BYTES or data[126:_HEADER] != b"IM":
        raise DataError(
            f"{path}: is no MATLAB file of version 5 (little-endian, below {MOST_BYTES >> 20} MB)."
        )
    try:
        return _loaded(data[:_HEADER] + _checked(data[_HEADER:]))
    # The checks' own errors, and those of scipy for damaged values.
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"{path}: a damaged MATLAB file, or one of a kind that is not read ({error})."
        ) from error


def _loaded(data: bytes) -> dict[str, Any]:
    from scipy.io import loadmat  # slow to import
    from scipy.io.matlab import MatReadError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variable that occurs twice: the last one counts
        try:
            found = loadmat(io.BytesIO(data))
        except MatReadError as error:
            raise ValueError(error) from error
    return {name: _plain(value) for name, value in found.items() if not name.startswith("__")}


def _plain(value: Any) -> Any:
    """Convert structs to lists of mappings, cells to lists, and texts to `str`; numbers stay an array."""
    if value.dtype.names is not None:
        names = value.dtype.names
        return [{name: _plain(row[name]) for name in names} for row in value.ravel(order="F")]
    if value.dtype.kind == "O":
        return [_plain(one) for one in value.ravel(order="F")]
    if value.dtype.kind == "U":
        lines = [str(line) for line in value.ravel()]
        return "".join(lines) if len(lines) < 2 else lines
    return value


# -- sizes ----------------------------------------------------------------------------------------------------


def _checked(data: bytes) -> bytes:
    """Check the sizes of all variables; return their uncompressed bytes."""
    parts: list[bytes] = []
    at, left, arrays = 0, MOST_BYTES, 0
    while at + 8 <= len(data):
        kind, body, at = _element(data, at)
        if kind == _COMPRESSED:
            body = _unpacked(body, left)
            left -= len(body)
            kind, body, _ = _element(body, 0)
        if kind == _MATRIX and body:
            arrays += _count_arrays(body, 0)
            parts += [struct.pack("<II", _MATRIX, len(body)), body, b"\0" * (-len(body) % 8)]
        if arrays > MOST_ARRAYS:
            raise ValueError(f"more than {MOST_ARRAYS:,} arrays")
    return b"".join(parts)


def _unpacked(body: bytes, most: int) -> bytes:
    """Return the content of a compressed element.

    Raises:
        ValueError: if it has more than `most` bytes.
    """
    found = zlib.decompressobj().decompress(body, most + 1)
    if len(found) > most:
        raise ValueError(f"all variables together unpack to more than {MOST_BYTES:,} bytes")
    return found


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Return the type and the bytes of the element at a position, and the position of the next."""
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


def _count_arrays(data: bytes, depth: int) -> int:
    """Check the sizes of an array and of its content; return the number of arrays.

    Raises:
        ValueError: for a size that does not fit the bytes, or an array of an unsupported class.
    """
    if not data:
        return 1  # an empty array, without a shape
    if depth > _DEPTH:
        raise ValueError("nested too deep")
    flag_kind, flags, at = _element(data, 0)
    shape_kind, sizes, at = _element(data, at)
    _, _, at = _element(data, at)  # the name
    if (flag_kind, len(flags), shape_kind) != (_FLAGS, 8, _SHAPE):
        raise ValueError("an array without a class or a shape")
    shape = np.frombuffer(sizes, "<i4").tolist()
    count, kind = math.prod(shape), flags[0]
    if min(shape, default=-1) < 0 or count > len(data):
        raise ValueError(f"an array of shape {shape} in {len(data):,} bytes")
    if kind == _CHAR or (_FIRST_NUMBER <= kind <= _LAST_NUMBER and not flags[1] & _COMPLEX):
        stored, body, at = _element(data, at)
        if stored not in (_TEXTS if kind == _CHAR else _NUMBERS):
            raise ValueError(f"data of kind {stored} in an array of class {kind}")
        if count > len(body):
            raise ValueError(f"an array of shape {shape} in {len(body):,} bytes")
        inside = 0
    elif kind in (_CELL, _STRUCT):
        fields, at = _fields(data, at) if kind == _STRUCT else (1, at)
        inside, at = _count_inside(data, at, count * fields, depth)
    else:
        raise ValueError(f"an array of class {kind}")
    if at < len(data):
        raise ValueError(f"{len(data) - at:,} bytes behind an array")
    return 1 + inside


def _fields(data: bytes, at: int) -> tuple[int, int]:
    """Return the number of fields of structs, and the position of their values."""
    _, width, at = _element(data, at)
    _, names, at = _element(data, at)
    step = int(np.frombuffer(width, "<i4")[0])
    if step < 1 or len(names) > step * _FIELDS:
        raise ValueError(f"fields without names, or more than {_FIELDS:,} of them")
    return len(names) // step, at


def _count_inside(data: bytes, at: int, count: int, depth: int) -> tuple[int, int]:
    """Check the arrays of a cell or of structs; return their number, and the position after them."""
    if count * 8 > len(data):
        raise ValueError(f"{count:,} arrays in {len(data):,} bytes")
    found = 0
    for _ in range(count):
        kind, body, at = _element(data, at)
        if kind != _MATRIX:
            raise ValueError(f"an element of kind {kind} where an array is expected")
        found += _count_arrays(body, depth + 1)
    return found, at
