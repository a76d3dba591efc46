"""The location of an image's bytes: in memory, in a file, or inside an archive. One Arrow type for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from everclip.data.pictures.picture_error import MAX_BYTES, PictureError
from everclip.data.pictures.remote import remote_file
from everclip.errors import DataError
from everclip.urls import is_remote

FIELDS = [
    pa.field("bytes", pa.binary()),
    pa.field("path", pa.string()),
    pa.field("offset", pa.int64()),
    pa.field("size", pa.int64()),
    pa.field("sha256", pa.binary()),
]
LOCATION = pa.struct(FIELDS)
"""Bytes in memory (or memory-mapped), or a file with offset and size if it is an archive; `sha256` of the content."""


def locations(
    count: int,
    data: pa.Array | None = None,
    paths: Sequence[str | None] | None = None,
    offsets: Sequence[int | None] | None = None,
    sizes: Sequence[int | None] | None = None,
) -> pa.Array:
    """Return an array of `LOCATION`; bytes given as an Arrow array are not copied."""
    given = {"bytes": data, "path": paths, "offset": offsets, "size": sizes}
    arrays = []
    for field in FIELDS:
        value = given.get(field.name)
        if value is None:
            arrays.append(pa.nulls(count, field.type))
        else:
            arrays.append(value if isinstance(value, pa.Array) else pa.array(value, field.type))
    return pa.StructArray.from_arrays(arrays, fields=FIELDS)


def is_location(kind: pa.DataType) -> bool:
    """Whether a column's type is `LOCATION`."""
    return bool(pa.types.is_struct(kind)) and [kind.field(i).name for i in range(kind.num_fields)] == [
        field.name for field in FIELDS
    ]


def bytes_at(place: dict[str, Any]) -> bytes:
    """Return the bytes of an image.

    Args:
        place: a value of type `LOCATION`.

    Raises:
        PictureError: if the file does not exist, cannot be read or is too large.
        DataError: if a file far away cannot be fetched.
    """
    if place["bytes"] is not None:
        return bytes(place["bytes"])
    path, offset, size = place["path"], place["offset"], place["size"]
    if path is None:
        raise PictureError("the row names no image.", "no-image", "")
    if is_remote(path):
        return _far_away(place)
    try:
        if offset is None:
            there = Path(path).stat().st_size
            if size is not None and there != size:
                detail = f"{there:,} bytes instead of {size:,}: it has changed since the data were read"
                raise PictureError(f"{path}: {detail}.", "unreadable-file", detail)
            size = there
        if size > MAX_BYTES:
            detail = f"{size:,} bytes; at most {MAX_BYTES:,} are read"
            raise PictureError(f"{path}: {detail}.", "too-large", detail)
        with open(path, "rb") as file:
            file.seek(offset or 0)
            data = file.read(size)
    except FileNotFoundError as error:
        raise PictureError(f"{path}: the image is missing.", "missing-file", f"looked for {path}") from error
    except (OSError, ValueError) as error:
        raise PictureError(
            f"{path}: the image cannot be read ({error}).", "unreadable-file", str(error)
        ) from error
    if len(data) < size:
        detail = f"{len(data):,} of {size:,} bytes are there"
        raise PictureError(f"{path}: {detail}.", "truncated", detail)
    return data if offset is None else _unchanged(data, place)


def _far_away(place: dict[str, Any]) -> bytes:
    """Return the bytes of an image in a shard behind a URL. An outage stops the work: it says nothing on the image."""
    path, offset, size = place["path"], place["offset"], place["size"]
    if size > MAX_BYTES:
        detail = f"{size:,} bytes; at most {MAX_BYTES:,} are read"
        raise PictureError(f"{path}: {detail}.", "too-large", detail)
    return _unchanged(remote_file(path).read(offset, size), place)


def _unchanged(data: bytes, place: dict[str, Any]) -> bytes:
    """Return the bytes of an image in a shard if they have its hash: an index knows only the shard's size and time."""
    if place["sha256"] is not None and hashlib.sha256(data).digest() != place["sha256"]:
        detail = f"the bytes from {place['offset']:,} on have changed since the data were read"
        raise PictureError(f"{place['path']}: {detail}.", "unreadable-file", detail)
    return data


def image_bytes(place: Any, name: str) -> bytes | None:
    """Return the bytes of a cell of an image column, whatever the storage.

    Raises:
        DataError: if they no longer exist.
    """
    if place is None or isinstance(place, bytes):
        return place
    try:
        return bytes_at(place)
    except PictureError as error:
        raise DataError(f"{name}: {error} It was there when the data were read.") from error


def with_contents(
    pictures: pa.ChunkedArray, hashes: Sequence[str | None], sizes: Sequence[int | None]
) -> pa.ChunkedArray:
    """Return locations with the SHA-256 of their content (given in hexadecimal) and the sizes of their files."""
    start, chunks = 0, []
    for chunk in pictures.chunks:
        stop = start + len(chunk)
        mine = pa.array([None if h is None else bytes.fromhex(h) for h in hashes[start:stop]], pa.binary())
        data, path, offset, size = (chunk.field(field.name) for field in FIELDS[:-1])
        size = pc.if_else(pc.is_valid(path), pc.coalesce(size, pa.array(sizes[start:stop], pa.int64())), size)
        chunks.append(pa.StructArray.from_arrays([data, path, offset, size, mine], fields=FIELDS))
        start = stop
    return pa.chunked_array(chunks, LOCATION)


def first_same_location(pictures: pa.ChunkedArray) -> pa.Array:
    """Return for each image the position of the first image with the same location (int64).

    Rows that name one file thus share one image: it is read, decoded and encoded once.
    """
    first: dict[tuple[str, int | None], int] = {}
    found: list[int] = []
    for chunk in pictures.chunks:
        for path, offset in zip(
            chunk.field("path").to_pylist(), chunk.field("offset").to_pylist(), strict=True
        ):
            position = len(found)
            found.append(position if path is None else first.setdefault((path, offset), position))
    return pa.array(found, pa.int64())
