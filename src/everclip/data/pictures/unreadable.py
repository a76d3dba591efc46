"""Find out why an image cannot be decoded: it ends early, is damaged, too large, or has an unsupported format."""

from __future__ import annotations

import re

from PIL import Image, features

from everclip.data.pictures import png_chunks

_CONVERT = "convert it to PNG or JPEG"
# First bytes of a file -> its format, for image formats that are not supported.
_OTHER_PICTURES = (
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop (PSD)"),
    (b"v/1\x01", "OpenEXR"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"FUJIFILMCCD-RAW", "a raw file of a Fujifilm camera"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"SIMPLE  =", "FITS"),
)
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"crx ": "a raw file of a Canon camera",
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
}
_NO_PICTURES = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the image; run `git lfs pull`"),
    (b"<!doctype html", "an HTML page: the download failed"),
    (b"<html", "an HTML page: the download failed"),
    (b"<svg", f"SVG; {_CONVERT}"),
    (b"%pdf", f"PDF; {_CONVERT}"),
    (b"%!ps", f"PostScript; {_CONVERT}"),
    (b"pk\x03\x04", "a ZIP archive; unpack it first"),
    (b"\x1f\x8b", "gzip; unpack it first"),
    (b"\x93numpy", f"a NumPy array; {_CONVERT}"),
)
_MAGIC = (b"\xff\xd8\xff", png_chunks.SIGNATURE, b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_UNSUPPORTED = (
    "nsupported",
    "not supported",
    "not available",
    "unknown pixel mode",
    "unknown raw mode",
    "cannot handle",
    "unknown compression",
)


def _error_text(error: Exception) -> str:
    """Return the message of a decoder, without the memory address that Pillow prints as the file's name."""
    return re.sub(r" <_io\.BytesIO[^>]*>", "", str(error))[:200]


def reason_for(data: bytes, error: Exception) -> tuple[str, str]:
    """Return the reason (a key of `everclip.data.reading.quarantine.REASONS`) and what was found.

    Args:
        data: the whole file.
        error: of the decoder.
    """
    if not data:
        return "zero-bytes", "no bytes"
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return "too-large", _error_text(error) or "the memory does not suffice"
    other = _other_picture(data)
    if other is not None:
        if other == "AVIF" and features.check("avif"):
            return "damaged", _error_text(error)
        return "unsupported", f"{other} is not read; {_CONVERT}"
    if not _has_known_start(data):
        start = data[:32].lstrip().lower()
        named = next((what for magic, what in _NO_PICTURES if start.startswith(magic)), None)
        return "not-an-image", named or f"begins with {data[:8].hex()}"
    said = _error_text(error)
    if _ends_early(data):
        return "truncated", said
    if any(word in str(error) for word in _UNSUPPORTED):
        return "unsupported", f"{said}; {_CONVERT}"
    return "damaged", said


def _has_known_start(data: bytes) -> bool:
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _other_picture(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        brands = (data[8:12], *(data[i : i + 4] for i in range(16, min(len(data), 64), 4)))
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "a video or HEIC file")
    if data[128:132] == b"DICM":
        return "DICOM"
    return next((what for magic, what in _OTHER_PICTURES if data.startswith(magic)), None)


def _ends_early(data: bytes) -> bool:
    """Whether the file's own structure says that more bytes should follow."""
    if data.startswith(png_chunks.SIGNATURE):
        return not png_chunks.is_complete(data)
    if data.startswith(b"\xff\xd8"):
        # The last scan must end; a thumbnail in the metadata ends before it.
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    if data.startswith(b"RIFF"):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data.startswith(b"GIF"):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith(b"BM"):
        return int.from_bytes(data[2:6], "little") > len(data)
    if data.startswith(b"II"):
        return int.from_bytes(data[4:8], "little") + 2 > len(data)
    return int.from_bytes(data[4:8], "big") + 2 > len(data)
