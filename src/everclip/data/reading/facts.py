"""The facts of a decoded image: size, mode, format, frames, and two hashes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from everclip.data.pictures.images import inspect
from everclip.data.pictures.rendering import DEFAULT, Rendering

SCHEMA = pa.schema(
    [
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("bytes", pa.int64()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("frames", pa.int64()),
        ("dhash", pa.uint64()),
        ("sha256", pa.string()),
        ("span", pa.string()),
        ("background", pa.string()),
        ("blank", pa.bool_()),
    ]
)
"""Columns of the facts."""


@dataclass(frozen=True)
class Facts:
    """Facts of one image.

    Attributes:
        width, height: of the upright image.
        mode, format: of the file.
        span: range of the values as `Range` writes it; empty for 8 bits.
        background: the colour behind transparency; empty if nothing is transparent.
        blank: whether no pixel differs from that background.
    """

    width: int
    height: int
    bytes: int
    mode: str
    format: str
    frames: int
    dhash: int
    sha256: str
    span: str = ""
    background: str = ""
    blank: bool = False


def difference_hash(picture: Image.Image) -> int:
    """Return the 64-bit difference hash of an image; similar images differ in few bits.

    The image is resized to 9 x 8 grey pixels; each bit says whether a pixel is darker than its right neighbour, row by
    row from the highest bit on.
    """
    small = picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, dtype=np.int16)
    bits = (pixels[:, 1:] > pixels[:, :-1]).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def facts_of(data: bytes, name: str, sha256: bytes, rendering: Rendering = DEFAULT) -> Facts:
    """Decode an image and return its facts.

    Raises:
        PictureError: if it cannot be used.
    """
    found = inspect(data, name, rendering)
    picture = found.picture
    return Facts(
        picture.width,
        picture.height,
        len(data),
        found.mode,
        found.format,
        found.frames,
        difference_hash(picture),
        sha256.hex(),
        "" if found.span is None else str(found.span),
        found.background,
        found.blank,
    )
