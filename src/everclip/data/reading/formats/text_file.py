"""Open a text file of any encoding, packed by gzip or not, with a bound on what is unpacked."""

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
    """Return the ending of a file in small letters, without that of the packing: `.csv` of `a.CSV.gz`."""
    name = path.name.lower().removesuffix(PACKED)
    return Path(name).suffix


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, unpacked.

    Raises:
        OSError: if it cannot be opened.
    """
    if path.suffix.lower() == PACKED:
        return io.BufferedReader(_Unpacked(path), 1 << 20)
    return open(path, "rb")


def open_text(path: Path, encoding: str) -> TextIO:
    """Open a file as text; bytes that are no text become lone surrogates, line ends stay as they are."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=ERRORS, newline="")


def text_encoding(path: Path, given: str | None = None) -> TextEncoding:
    """Return the encoding of a text file; `given` is what the user says.

    Raises:
        DataError: if it is no text at all.
    """
    with open_bytes(path) as file:
        return encoding_of(path, file, given)


def small_text(path: Path, most: int, given: str | None = None) -> str:
    """Return the text of a small file: in the encoding that the user says, else that its first bytes say, else UTF-8.

    Nothing is guessed from its words, since it has too few of them.

    Args:
        path: the file.
        most: bytes that it may have.
        given: the encoding that the user says.

    Raises:
        OSError: if it cannot be read.
        DataError: if it is larger, or not of that encoding.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DataError(f"{path.name}: larger than {most:,} bytes")
    return decoded(path.name, data, given)


def decoded(name: str, data: bytes, given: str | None = None) -> str:
    """Return the text of a few bytes: in the encoding that the user says, else as their first bytes say, else UTF-8.

    Args:
        name: what messages call it.
        data: the bytes.
        given: the encoding that the user says.

    Raises:
        DataError: if they are not of that encoding.
    """
    found = encoding_of(Path(name), io.BytesIO(data), given)
    encoding = "utf-8" if found.name == "cp1252" and given is None else found.name
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: byte {error.start} is not {(given or encoding).upper()}; say the encoding with "
            "data.encoding=NAME"
        ) from error


def is_text(text: str) -> bool:
    """Whether a text holds no byte that could not be decoded, and no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Unpacked(io.RawIOBase):
    """The content of a gzip file; a small file may stand for any number of bytes, so reading stops at a bound."""

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
