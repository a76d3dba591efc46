"""Images and texts that a user passes to a learner in Python: one or several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from PIL import Image

from everclip.data.pictures.from_python import KINDS, encoded, is_array
from everclip.data.pictures.images import decode, loaded
from everclip.data.pictures.picture_error import MAX_BYTES
from everclip.errors import ConfigError

ImageInput = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | Any
"""A path, encoded bytes, an open file, a PIL image, an array `(H, W, 3)` of uint8, or a tensor `(3, H, W)`."""

ImageInputs = ImageInput | Iterable[ImageInput]
"""One image, or several."""

TextInputs = str | Iterable[str]
"""One text, or several."""


def as_texts(given: TextInputs, where: str) -> list[str]:
    """Return one text or several as a list.

    Raises:
        ConfigError: if a value is not a text.
    """
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray):
        raise ConfigError(f"{where}: expected a text or a list of texts, found {type(given).__name__}.")
    texts = list(given)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(
                f"{where}: number {place} is of type {type(text).__name__}; expected a text: str(...) makes one."
            )
    return [str(text) for text in texts]  # converts numpy strings


def each_image(given: ImageInputs, where: str) -> Iterator[ImageInput]:
    """Yield one image or several, one by one.

    Raises:
        ConfigError: if the value is neither an image nor several.
    """
    if _is_image(given):
        yield given
        return
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ConfigError(
            f"{where}: images are of type {type(given).__name__}; expected {KINDS}, or several of these."
        )
    yield from given


def _is_image(value: object) -> bool:
    if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image):
        return True
    if is_array(value):
        # An array of four dimensions is several images; an array of objects or texts is a list of its items.
        number = getattr(getattr(value, "dtype", None), "kind", "f") not in "OUS"
        return number and getattr(value, "ndim", 0) in (2, 3)
    return callable(getattr(value, "read", None))


def open_image(image: ImageInput, name: str) -> Image.Image:
    """Return an image in RGB, decoded by the same rules as images of data sets.

    Raises:
        ConfigError: if a path names no file, or the value is not an image.
        PictureError: if the image cannot be read.
    """
    if isinstance(image, Image.Image) and image.mode == "RGB" and "transparency" not in image.info:
        return loaded(image, name)  # no need to encode and decode it
    content = encoded(image, name)
    if content is not None:
        return decode(content, name)
    if not isinstance(image, str | os.PathLike):
        raise ConfigError(f"{name} is of type {type(image).__name__}; expected {KINDS}.")
    path = Path(os.path.expanduser(os.fspath(image)))
    try:
        with open(path, "rb") as file:
            return decode(file.read(MAX_BYTES + 1), str(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(_explained(path, error)) from error


def _explained(path: Path, error: Exception) -> str:
    if isinstance(error, IsADirectoryError):
        return f'{path}: a folder; give its images: sorted(Path("{path}").glob("*.jpg")).'
    if str(path).startswith(("http:/", "https:/")):
        return f"{path}: a URL; download it first."
    if isinstance(error, FileNotFoundError):
        pattern = any(mark in path.name for mark in "*?")
        return f"{path}: no such image." + (
            f' To expand a pattern, use glob.glob("{path}").' if pattern else ""
        )
    return f"{str(path)[:200]}: cannot be read ({getattr(error, 'strerror', None) or error})."
