"""Example images as data URIs: small raster images from inside the run folder only."""

from __future__ import annotations

import base64
import io
from pathlib import Path

_LARGEST = 40_000  # bytes; larger files are scaled down
_SIDE = 192


def data_uri(data: bytes, mime: str) -> str:
    """Return bytes as a `data:` URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def inline_image(folder: Path, name: str) -> str | None:
    """Return an image of a run folder as a data URI; `None` if it is missing, not an image, or outside the folder.

    Scale down large images.
    """
    root = folder.resolve()
    path = (root / name).resolve()
    if not name or not path.is_relative_to(root) or not path.is_file():
        return None
    from PIL import Image, UnidentifiedImageError

    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            mime = Image.MIME.get(image.format or "", "")
            if len(data) <= _LARGEST and mime in ("image/png", "image/jpeg", "image/webp", "image/gif"):
                return data_uri(data, mime)
            small = image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB")
            small.thumbnail((_SIDE, _SIDE))
            out = io.BytesIO()
            small.save(out, format="PNG")
            return data_uri(out.getvalue(), "image/png")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
