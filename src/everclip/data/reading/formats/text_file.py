"""Open text files in any encoding, also compressed by gzip, with a limit on the uncompressed size."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, TextIO

from everclip.data.reading.formats.text_encoding import ERRORS, TextEncoding, encoding_of
from everclip.errors import DataError

PACKED = ".gz"
_LEAST_UNPACKED = 1 << 30
_MOST_TIMES = 100


def content_ending(path: Path) -> str:
    """Return the ending of a file in lower case, without `.gz`: `.csv` of `a.CSV.gz`."""
    name = path.name.lower().removesuffix(PACKED)
    return Path(name).suffix


def open_bytes(path: Path) -> BinaryIO:
    """Open a file; decompress it if it ends in `.gz`.

    Raises:
        OSError: if it cannot be opened.
    """
    if path.suffix.lower() == PACKED:
        return io.BufferedReader(_Unpacked(path), 1 << 20)
    return open(path, "rb")


def open_text(path: Path, encoding: str) -> TextIO:
    """Open a file as text; undecodable bytes become lone surrogates, line ends are kept."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=ERRORS, newline="")


def text_encoding(path: Path, user_encoding: str | None = None) -> TextEncoding:
    """Return the encoding of a text file; `user_encoding` is what the user says.

    Raises:
        DataError: if it is not text.
    """
    with open_bytes(path) as file:
        return encoding_of(path, file, user_encoding)


def small_text(path: Path, most: int, user_encoding: str | None = None) -> str:
    """Return the text of a small file: in the encoding of the user, else of its first bytes, else UTF-8.

    Nothing is guessed from its words: it has too few.

    Args:
        path: the file.
        most: limit of its bytes.
        user_encoding: the encoding that the user says.

    Raises:
        OSError: if it cannot be read.
        DataError: if it is larger, or not in that encoding.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DataError(f"{path.name}: larger than {most:,} bytes")
    return decoded(path.name, data, user_encoding)


def decoded(name: str, data: bytes, user_encoding: str | None = None) -> str:
    """Return the text of a few bytes: in the encoding of the user, else of the first bytes, else UTF-8.

    Args:
        name: shown in messages.
        data: the bytes.
        user_encoding: the encoding that the user says.

    Raises:
        DataError: if they are not in that encoding.
    """
    found = encoding_of(Path(name), io.BytesIO(data), user_encoding)
    encoding = "utf-8" if found.name == "cp1252" and user_encoding is None else found.name
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: byte {error.start} is not {(user_encoding or encoding).upper()}; say the encoding with "
            "data.encoding=NAME"
        ) from error


def is_text(text: str) -> bool:
    """Whether a text has no undecodable bytes and no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Unpacked(io.RawIOBase):
    """The content of a gzip file; a small file may decompress to any size, so reading stops at a limit."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, gzip.open(path, "rb")  # noqa: SIM115  # closed in close()
        self._left = self._most = max(_LEAST_UNPACKED, _MOST_TIMES * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # what BufferedReader gives
        try:
            data = self._file.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{self._path}: damaged or cut short ({error}).") from error
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._path}: unpacks to more than {self._most:,} bytes; unpack it and look at it."
            )
        buffer[: len(data)] = data
        return len(data)

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._left = self._most
        return self._file.seek(offset, whence)

    def close(self) -> None:
        self._file.close()
        super().close()
