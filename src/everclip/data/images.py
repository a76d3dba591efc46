"""From encoded bytes to pixels: bounded decoding, and what an image tower takes."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from everclip.data.resizing import OPEN_CLIP, Resizing
from everclip.errors import DataError

if TYPE_CHECKING:
    from everclip.data.table import Table

MAX_PIXELS = 64_000_000
"""A picture larger than this is refused before it is decoded (a "decompression bomb")."""

MAX_BYTES = 256 * 1024 * 1024
"""An encoded picture larger than this is not even read."""

MAX_ASPECT = 100
"""Resizing the shorter side to the model's would make the longer one of such a picture fill the memory."""

MAX_SCAN_PIXELS = 1_000_000_000
"""Scans times pixels of a JPEG: a progressive one can ask for a pass over all pixels with every ten bytes."""

MAX_FRAMES = 1000
"""Frames are counted so far; only the first is ever decoded."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's readers raise on broken files; anything else is a defect of ours and must be seen.
BROKEN = (
    UnidentifiedImageError,
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    Image.DecompressionBombError,
    MemoryError,
)

# Once and for all threads: `warnings.catch_warnings` is not safe in several. Bombs are refused below their limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class PictureError(DataError):
    """A picture that cannot be used; `reason` is a key of `everclip.data.quarantine.REASONS`."""

    def __init__(self, message: str, reason: str, detail: str) -> None:
        super().__init__(message)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Decoded:
    """A picture as RGB, upright, and what its file said: mode, format and number of frames (at most `MAX_FRAMES`)."""

    picture: Image.Image
    mode: str
    format: str
    frames: int


def decode(data: bytes, name: str) -> Image.Image:
    """Decode one picture to RGB: upright as its EXIF says, transparency laid on white, the first frame if it moves.

    Args:
        data: encoded bytes.
        name: what errors call it.

    Raises:
        PictureError: if the bytes are no picture of a known format, are truncated, or would be too large.
    """
    picture = _opened(data, name)
    try:
        return _rgb(_upright(picture))
    except BROKEN as error:
        raise _unreadable(data, name, error) from error


def inspect(data: bytes, name: str) -> Decoded:
    """Decode one picture as `decode` does, and say what its file holds.

    Raises:
        PictureError: as `decode`.
    """
    picture = _opened(data, name)
    try:
        mode, kind = picture.mode, str(picture.format)
        frames = _frames(data, kind)
        return Decoded(_rgb(_upright(picture)), mode, kind, frames)
    except BROKEN as error:
        raise _unreadable(data, name, error) from error


def _opened(data: bytes, name: str) -> Image.Image:
    """Read the head of a picture and refuse what would take too much memory or time."""
    if len(data) > MAX_BYTES:
        raise _refused(name, "too-large", f"{len(data):,} bytes; at most {MAX_BYTES:,} are read")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except BROKEN as error:
        raise _unreadable(data, name, error) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        detail = f"picture of {width} x {height} pixels; at most {MAX_PIXELS:,} are read"
        raise _refused(name, "too-large", detail)
    if max(width, height) > MAX_ASPECT * min(width, height):
        detail = f"picture of {width} x {height} pixels; sides may differ at most {MAX_ASPECT}-fold"
        raise _refused(name, "extreme-aspect", detail)
    if picture.format in ("JPEG", "MPO"):
        scans = _scans(data)
        if scans * width * height > MAX_SCAN_PIXELS:
            raise _refused(name, "too-large", f"a JPEG of {width} x {height} pixels in {scans} scans")
    return picture


def _scans(data: bytes) -> int:
    """Return how many scans a JPEG holds; counted only where the first does not hold all components by itself."""
    at, components, progressive = 2, 0, False
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xDA:
            if not progressive and data[at + 4] == components:
                return 1
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            progressive, components = marker not in (0xC0, 0xC1), data[at + 9]
        at += 2 if 0xD0 <= marker <= 0xD8 else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.count(b"\xff\xda")


def _refused(name: str, reason: str, detail: str) -> PictureError:
    return PictureError(f"{name}: {detail}.", reason, detail)


def _unreadable(data: bytes, name: str, error: Exception) -> PictureError:
    head = data[:8].hex() if data else "no bytes"
    if not data:
        reason = "zero-bytes"
    elif data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        reason = "truncated"
    else:
        reason = "not-an-image"
    detail = f"begins with {head}" if isinstance(error, UnidentifiedImageError) else str(error)[:200]
    return PictureError(f"{name}: not a readable picture ({error}; it begins with {head}).", reason, detail)


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says."""
    picture.load()
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except BROKEN:
        return (
            picture  # EXIF data that cannot be read say nothing; every viewer shows such a picture as it lies
        )
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.info = picture.info  # holds the palette's transparent entry
    return turned


def _rgb(picture: Image.Image) -> Image.Image:
    """Return the picture in RGB, with the tones its mode means."""
    if picture.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 instead of scaling it, which turns such a picture white.
        return Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture))
        scale = 255.0 if values.max(initial=0) <= 1 else 1.0  # floats are either shares or levels
        return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
    if picture.mode == "RGB" and picture.format in ("JPEG", None):
        return picture  # converting would copy; these no longer hold their file, other formats' pictures do
    return picture.convert("RGB")


def _frames(data: bytes, kind: str) -> int:
    """Count the frames of an encoded picture, up to `MAX_FRAMES`."""
    if kind == "GIF":
        return _gif_frames(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        if kind != "TIFF":
            return min(int(getattr(picture, "n_frames", 1)), MAX_FRAMES)
        # The head does not say it, and Pillow's own count walks to the end, however far that is.
        count = 1
        try:
            while count < MAX_FRAMES:
                picture.seek(count)
                count += 1
        except BROKEN:
            pass  # the end, or a damaged later page: those before it count
        return count


def _gif_frames(data: bytes) -> int:
    """Walk over the blocks of a GIF; Pillow would decode every frame on its way."""

    def table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    count, size = 0, len(data)
    at = 13 + (table(data[10]) if size > 10 else 0)
    while at < size and count < MAX_FRAMES:
        if data[at] == 0x2C and at + 9 < size:
            count += 1
            at += 10 + table(data[at + 9]) + 1
        elif data[at] == 0x21:
            at += 2
        else:
            break
        while at < size and data[at]:
            at += data[at] + 1
        at += 1
    return max(count, 1)


class ImageStore:
    """Decoded pictures of a table, kept in memory up to a bound; safe to use from several threads."""

    def __init__(self, max_bytes: int = 512 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._pictures: dict[tuple[int, int], Image.Image] = {}
        self._lock = threading.Lock()

    def get(self, table: Table, position: int) -> Image.Image:
        """Return the RGB picture at `position`; callers must not change it in place."""
        place = table.picture(position)
        picture = self._pictures.get(place)
        if picture is None:
            picture = decode(table.value("image", position), f"{table.name}, id {table.ids[position]}")
            size = picture.width * picture.height * 3
            with self._lock:
                if self._held + size <= self._max_bytes and place not in self._pictures:
                    self._pictures[place] = picture
                    self._held += size
        return picture


@dataclass(frozen=True)
class PixelFormat:
    """What a backbone's image tower takes.

    Attributes:
        size: side in pixels.
        mean, std: per channel, of values from 0 to 1.
        resizing: how its own transform fits a picture of any shape into the square.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resizing: Resizing = OPEN_CLIP

    def tensor(self, picture: Image.Image) -> torch.Tensor:
        """Return normalised pixels `(3, size, size)`."""
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        pixels = (np.asarray(picture, dtype=np.float32) / np.float32(255) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
