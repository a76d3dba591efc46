"""Pictures and texts that a user gives a learner in Python: one, or several."""

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

Picture = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | Any
"""A path, encoded bytes, an open file, a PIL picture, an array `(H, W, 3)` of uint8, or a tensor `(3, H, W)`."""

Pictures = Picture | Iterable[Picture]
"""One picture, or several."""

Texts = str | Iterable[str]
"""One text, or several."""


def several_texts(given: Texts, where: str) -> list[str]:
    """Return texts as a list, also where one stands alone.

    Raises:
        ConfigError: for something that is no text.
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
    return [str(text) for text in texts]  # text of numpy is text


def several_pictures(given: Pictures, where: str) -> Iterator[Picture]:
    """Yield pictures one by one, also where one stands alone.

    Raises:
        ConfigError: for something that is neither a picture nor several.
    """
    if _is_picture(given):
        yield given
        return
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ConfigError(
            f"{where}: images are of type {type(given).__name__}; expected {KINDS}, or several of these."
        )
    yield from given


def _is_picture(value: object) -> bool:
    if isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image):
        return True
    if is_array(value):
        # Four dimensions are several pictures; an array of objects or texts is a list of what it holds.
        number = getattr(getattr(value, "dtype", None), "kind", "f") not in "OUS"
        return number and getattr(value, "ndim", 0) in (2, 3)
    return callable(getattr(value, "read", None))


def opened(image: Picture, name: str) -> Image.Image:
    """Return a picture in RGB, decoded by the rules of data sets.

    Raises:
        ConfigError: for a path that names no file, or something that is no picture.
        PictureError: for a picture that cannot be read.
    """
    if isinstance(image, Image.Image) and image.mode == "RGB" and "transparency" not in image.info:
        return loaded(image, name)  # encoding and decoding it would take seconds and change nothing
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
        return f'{path}: a folder; give its pictures: sorted(Path("{path}").glob("*.jpg")).'
    if str(path).startswith(("http:/", "https:/")):
        return f"{path}: a URL; download it first."
    if isinstance(error, FileNotFoundError):
        pattern = any(mark in path.name for mark in "*?")
        return f"{path}: no such picture." + (
            f' A pattern is spelled out by glob.glob("{path}").' if pattern else ""
        )
    return f"{str(path)[:200]}: cannot be read ({getattr(error, 'strerror', None) or error})."
