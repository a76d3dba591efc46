"""Images from Python: encoded bytes, PIL images, arrays, tensors. The same rules apply to all of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from everclip.data.pictures.images import loaded
from everclip.data.pictures.picture_error import MAX_BYTES, PictureError

KINDS = (
    "a path, encoded bytes, a PIL image, an array (H, W, 3) of uint8, or a tensor (3, H, W) of uint8 or of floats in "
    "[0, 1]"
)
"""The accepted kinds of images, for messages."""


def is_array(value: object) -> bool:
    """Whether a value is an array or a tensor (of numpy, torch or others)."""
    plain = isinstance(value, str | bytes | Image.Image)  # a NumPy string is text
    return not plain and hasattr(value, "__array__") and hasattr(value, "ndim")


def encoded(value: Any, name: str) -> bytes | None:
    """Return an image as the bytes of a lossless image file; `None` for other values.

    Args:
        value: encoded bytes, an open binary file, a PIL image, an array or a tensor.
        name: shown in errors.

    Raises:
        PictureError: for an array that is not an image.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Image.Image):
        return _file_of(loaded(value, name))
    if is_array(value):
        return _file_of(picture_of(value, name))
    read = getattr(value, "read", None)
    if callable(read):
        content = read(MAX_BYTES + 1)
        if not isinstance(content, bytes):
            raise _refused(name, "an open file of text; open it with mode 'rb'")
        return content
    return None


def _file_of(picture: Image.Image) -> bytes:
    """Encode without loss; always the same bytes for the same pixels."""
    file = io.BytesIO()
    mode = picture.mode
    if mode in ("I", "F"):
        picture.save(file, "TIFF")  # PNG has no place for 32 bits
    elif mode in ("L", "RGB", "RGBA", "I;16"):
        picture.save(file, "PNG")
    elif mode.startswith("I;16"):  # other orders of the two bytes
        Image.fromarray(np.asarray(picture).astype(np.uint16)).save(file, "PNG")
    else:
        picture.convert("RGB" if mode in ("CMYK", "YCbCr", "LAB", "HSV") else "RGBA").save(file, "PNG")
    return file.getvalue()


def picture_of(value: Any, name: str) -> Image.Image:
    """Return an array or tensor as an image.

    Args:
        value: uint8 `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels; floats in [0, 1] stand for shares.
        name: shown in errors.

    Raises:
        PictureError: for another shape, type or range.
    """
    detach = getattr(value, "detach", None)
    array = np.asarray(detach().cpu() if callable(detach) else value)
    shape = tuple(array.shape)
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if 0 in shape or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise _refused(name, f"an array of shape {shape}; expected (H, W, 3)")
    return Image.fromarray(np.ascontiguousarray(_bytes_of(array, name)))


def _bytes_of(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise _refused(
            name, f"an array of {array.dtype}; expected uint8 (0 to 255): array.astype('uint8') if it is"
        )
    if not np.isfinite(array).all():
        raise _refused(name, "an array with NaN or infinite values")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        why = "normalised already; give the image before that" if low < 0 else "0 to 255? Give uint8 then"
        raise _refused(
            name, f"an array of {array.dtype} from {low:.3g} to {high:.3g}; expected [0, 1] ({why})"
        )
    levels: np.ndarray = np.rint(array * 255).astype(np.uint8)
    return levels


def _refused(name: str, found: str) -> PictureError:
    return PictureError(f"{name}: {found}.", "not-an-image", found)
