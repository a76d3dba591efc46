"""Decode images within bounds, and turn them into the tensors of an image tower."""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features

from everclip.data.pictures.background import Flattened, flatten
from everclip.data.pictures.bit_depth import HighBitImage, high_bit_image
from everclip.data.pictures.picture_error import MAX_BYTES, PictureError
from everclip.data.pictures.png_chunks import without_metadata
from everclip.data.pictures.rendering import DEFAULT, Rendering
from everclip.data.pictures.resizing import OPEN_CLIP, Resizing
from everclip.data.pictures.unreadable import reason_for
from everclip.data.pictures.value_range import Range

RULES = 2
"""Version of the decoding rules. Increase it when a file gives other pixels than before: caches are then rebuilt."""

MAX_PIXELS = 64_000_000
"""An image larger than this is refused before it is decoded (a "decompression bomb")."""

MAX_ASPECT = 100
"""Largest ratio of the sides: resizing a longer image by its shorter side would fill the memory."""

MAX_SCAN_PIXELS = 1_000_000_000
"""Limit of scans times pixels of a JPEG: every ten bytes of a progressive file can cost a pass over all pixels."""

MAX_FRAMES = 1000
"""Frames are counted up to this number; only the first is decoded."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))

_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
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

# What Pillow raises for broken files. Any other exception is a bug of everclip and must surface.
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
    RuntimeError,  # of the AVIF decoder
)

# For all threads, since `warnings.catch_warnings` is not thread-safe. Bombs are refused below Pillow's limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class Rendered:
    """An upright RGB image, and how it was made.

    Attributes:
        picture: RGB with 8 bits.
        source: the upright image before compositing, or its values if they have more than 8 bits.
        span: the range of values that became 0 to 255; `None` for 8 bits.
        background: the colour behind transparency; empty if nothing is transparent.
        blank: whether no pixel differs from the background.
        mode, format: of the file.
        frames: at most `MAX_FRAMES`; 0 if they were not counted.
    """

    picture: Image.Image
    source: Image.Image | HighBitImage
    span: Range | None
    background: str
    blank: bool
    mode: str
    format: str
    frames: int = 0


def decode(data: bytes, name: str, rendering: Rendering = DEFAULT) -> Image.Image:
    """Decode one image to RGB: upright as its EXIF says, the first frame if it moves.

    Args:
        data: encoded bytes.
        name: shown in errors.
        rendering: background and range of values, if the file alone does not decide them.

    Raises:
        PictureError: if the format is unknown, the bytes are damaged, or the image is too large.
    """
    return render(data, name, rendering).picture


def render(data: bytes, name: str, rendering: Rendering = DEFAULT) -> Rendered:
    """Decode one image as `decode` does, and keep its source.

    Raises:
        PictureError: as `decode`.
    """
    lean = without_metadata(data)
    picture = _opened(lean, name)
    try:
        return _rendered(picture, lean, rendering)
    except BROKEN as error:
        raise _unreadable(data, name, error) from error


def inspect(data: bytes, name: str, rendering: Rendering = DEFAULT) -> Rendered:
    """Decode one image as `render` does, and count its frames.

    Raises:
        PictureError: as `decode`.
    """
    found = render(data, name, rendering)
    try:
        return replace(found, frames=_frames(without_metadata(data), found.format))
    except BROKEN as error:
        raise _unreadable(data, name, error) from error


def _rendered(picture: Image.Image, data: bytes, rendering: Rendering) -> Rendered:
    mode, kind = picture.mode, str(picture.format)
    picture.load()
    turn = _turn(picture)
    deep = high_bit_image(picture, data, FORMATS)
    span = None if deep is None else rendering.span_of(deep)
    upright = _turned(picture if deep is None or span is None else deep.picture(span), turn)
    laid = _flattened(upright, rendering.background)
    blank = laid.blank or (deep is not None and _is_plain(laid.picture) and deep.is_varied)
    return Rendered(laid.picture, deep or upright, span, laid.background, blank, mode, kind)


def _is_plain(picture: Image.Image) -> bool:
    three = cast(tuple[tuple[int, int], ...], picture.getextrema())  # a pair per channel of RGB
    return all(low == high for low, high in three)


def _opened(data: bytes, name: str) -> Image.Image:
    """Read the header of an image; refuse it if decoding would take too much memory or time."""
    if len(data) > MAX_BYTES:
        raise _refused(name, "too-large", f"{len(data):,} bytes; at most {MAX_BYTES:,} are read")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except BROKEN as error:
        raise _unreadable(data, name, error) from error
    width, height = picture.size
    require_fitting(picture.size, name)
    if picture.format in ("JPEG", "MPO"):
        scans = _scans(data)
        if scans * width * height > MAX_SCAN_PIXELS:
            raise _refused(name, "too-large", f"a JPEG of {width} x {height} pixels in {scans} scans")
    return picture


def require_fitting(size: tuple[int, int], name: str) -> None:
    """Refuse an image with too many pixels or an extreme aspect ratio.

    Raises:
        PictureError: for such a `size` (width and height in pixels).
    """
    width, height = size
    if width * height > MAX_PIXELS:
        detail = f"image of {width} x {height} pixels; at most {MAX_PIXELS:,} are read"
        raise _refused(name, "too-large", detail)
    if max(width, height) > MAX_ASPECT * min(width, height):
        detail = f"image of {width} x {height} pixels; sides may differ at most {MAX_ASPECT}-fold"
        raise _refused(name, "extreme-aspect", detail)


def _scans(data: bytes) -> int:
    """Return the number of scans of a JPEG; 1 if the first scan holds all components."""
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
    scans = 0
    # Markers after the first scan: inside scan data, 0xff is followed by 0 or a restart marker.
    while at < len(data) and (found := _MARKER.search(data, at)) is not None:
        marker, at = data[found.start() + 1], found.start() + 2
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _refused(name: str, reason: str, detail: str) -> PictureError:
    return PictureError(f"{name}: {detail}.", reason, detail)


def _unreadable(data: bytes, name: str, error: Exception) -> PictureError:
    reason, detail = reason_for(data, error)
    return PictureError(f"{name}: not a readable image ({detail}).", reason, detail)


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes an image upright by its EXIF orientation."""
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except BROKEN:
        return None  # unreadable EXIF data are ignored, as image viewers do


def _turned(picture: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.info = picture.info  # holds the palette's transparent entry
    return turned


def loaded(picture: Image.Image, name: str) -> Image.Image:
    """Return an image that was opened in Python, fully loaded and upright; the size limits of files apply.

    Raises:
        PictureError: if its file is damaged, or it is too large.
    """
    require_fitting(picture.size, name)
    try:
        picture.load()
    except BROKEN as error:
        raise _refused(name, "damaged", f"the image cannot be decoded ({str(error)[:200]})") from error
    return _turned(picture, _turn(picture))


def _flattened(picture: Image.Image, background: str) -> Flattened:
    """Return the image in RGB, composited on the background."""
    if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        return flatten(picture.convert("RGBA"), background)
    if picture.mode == "RGB" and picture.format in ("JPEG", None):
        return Flattened(
            picture, "", False
        )  # converting would copy; these no longer hold their file, others do
    return Flattened(picture.convert("RGB"), "", False)


def _frames(data: bytes, kind: str) -> int:
    """Count the frames of an encoded image, up to `MAX_FRAMES`."""
    if kind == "GIF":
        return _gif_frames(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        if kind != "TIFF":
            return min(int(getattr(picture, "n_frames", 1)), MAX_FRAMES)
        # The header has no count, and Pillow's own count has no limit.
        count = 1
        try:
            while count < MAX_FRAMES:
                picture.seek(count)
                count += 1
        except BROKEN:
            pass  # the end, or a damaged page; the pages before it count
        return count


def _gif_frames(data: bytes) -> int:
    """Count the frames of a GIF by its blocks; Pillow would decode every frame."""

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


class Encoded(Protocol):
    """The part of a table that `ImageStore` needs."""

    def image_key(self, position: int) -> tuple[int, int]:
        """Return a key of an image; rows that share the image have the same key."""

    def encoded(self, position: int) -> tuple[bytes, str] | tuple[bytes, str, Rendering]:
        """Return the arguments of `decode`."""


class ImageStore:
    """Cache of decoded images with a bound on memory. Thread-safe."""

    def __init__(self, max_bytes: int = 512 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._bytes_held = 0
        self._pictures: dict[tuple[int, int], Image.Image] = {}
        self._lock = threading.Lock()

    def get(self, table: Encoded, position: int) -> Image.Image:
        """Return the RGB image at `position`; callers must not change it in place."""
        key = table.image_key(position)
        picture = self._pictures.get(key)
        if picture is None:
            picture = decode(*table.encoded(position))
            size = picture.width * picture.height * 3
            with self._lock:
                if self._bytes_held + size <= self._max_bytes and key not in self._pictures:
                    self._pictures[key] = picture
                    self._bytes_held += size
        return picture


@dataclass(frozen=True)
class PixelFormat:
    """The input of a backbone's image tower.

    Attributes:
        size: side in pixels.
        mean, std: per channel, of values from 0 to 1.
        resizing: how the backbone's transform fits an image of any shape into the square.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resizing: Resizing = OPEN_CLIP

    def tensor(self, picture: Image.Image) -> torch.Tensor:
        """Return normalised pixels `(3, size, size)`."""
        return self.tensors([picture])[0]

    def tensors(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Return the normalised pixels of RGB images of `size` x `size`: `(N, 3, size, size)`."""
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        # Memory of torch: its sums may depend on how memory is aligned, and that of numpy's differs from run to run.
        batch = torch.empty(len(pictures), 3, self.size, self.size)
        # One image after another stays in the processor's cache; numpy is slow with three channels innermost.
        for pixels, picture in zip(batch.numpy(), pictures, strict=True):
            pixels[...] = np.asarray(picture).transpose(2, 0, 1)
            pixels /= np.float32(255)
            pixels -= mean
            pixels /= std
        return batch
