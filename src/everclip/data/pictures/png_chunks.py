"""The chunks of a PNG: remove long metadata before decoding, and detect incomplete files."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# ImageMagick and XMP keep an image's orientation in text chunks of these names.
_ORIENTATION = (b"Raw profile type exif", b"XML:com.adobe.xmp")
_LONGEST_KEPT = 64 * 1024


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of every complete chunk; it starts with its length field."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        yield data[at + 4 : at + 8], at, end
        at = end


def without_metadata(data: bytes) -> bytes:
    """Return a PNG without texts and colour profile; other files unchanged.

    Pillow unpacks these chunks and refuses the whole image where one unpacks to more than 1 MB. They do not
    change the pixels. Short chunks that may hold the orientation are kept.
    """
    if not data.startswith(SIGNATURE):
        return data
    kept, start, names = [], 0, set()
    for kind, at, end in chunks(data):
        if kind not in _METADATA:
            continue
        body = data[at + 8 : min(end - 4, at + 8 + _LONGEST_KEPT)]
        name = body.partition(b"\0")[0]
        if name in _ORIENTATION and name not in names and _is_short(kind, body, end - at):
            names.add(name)
            continue
        kept.append(data[start:at])
        start = end
    return b"".join([*kept, data[start:]]) if start else data


def _is_short(kind: bytes, body: bytes, size: int) -> bool:
    """Whether a text chunk is short, also after decompression."""
    if size > _LONGEST_KEPT:
        return False
    rest = body.partition(b"\0")[2]
    if kind == b"zTXt":
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        return True
    try:
        unpacker = zlib.decompressobj()
        unpacker.decompress(packed, _LONGEST_KEPT)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


def is_complete(data: bytes) -> bool:
    """Whether the final chunk `IEND` exists."""
    return any(kind == b"IEND" for kind, _, _ in chunks(data))
