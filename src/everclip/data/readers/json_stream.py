"""Read a JSON file of any size element by element, so that memory holds one element at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from everclip.data.readers.text_file import open_text, text_encoding
from everclip.errors import DataError

MAX_ELEMENT = 16 * 1024 * 1024
"""Characters of one element; a longer one is refused."""

_BLOCK = 1024 * 1024
_BLANK = re.compile(r"[ \t\r\n]*")


def elements(path: Path, encoding: str | None = None, arrays_only: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (key, element) of a JSON document, in order.

    An array at the top gives its elements under the key "". An object at the top gives the elements of its arrays,
    and its other values, under their keys. Bytes that are not of the encoding become lone surrogates.

    Args:
        path: the file.
        encoding: of the file; default: found out.
        arrays_only: whether only the elements of arrays are wanted.

    Raises:
        DataError: if the file is no such document, ends early, or has an element that is too large.
    """
    name = encoding or text_encoding(path).name
    with open_text(path, name) as file:
        yield from _document(_Text(path, file), arrays_only)


def _document(text: _Text, arrays_only: bool) -> Iterator[tuple[str, Any]]:
    first = text.next_mark()
    if first == "[":
        for element in _array(text, ""):
            yield "", element
    elif first == "{":
        for key in _keys(text):
            if text.look() == "[":
                text.next_mark()
                for element in _array(text, key):
                    yield key, element
            else:
                value = text.value(key)
                if not arrays_only:
                    yield key, value
    else:
        raise text.wrong("expected an object or an array at the top")
    if text.look():
        raise text.wrong("something follows after the end")


def _keys(text: _Text) -> Iterator[str]:
    """Yield the keys of an object; the caller takes each value."""
    if text.look() == "}":
        text.next_mark()
        return
    while True:
        key = text.value("a key")
        if not isinstance(key, str) or text.next_mark() != ":":
            raise text.wrong("expected a key and a colon")
        yield key
        mark = text.next_mark()
        if mark == "}":
            return
        if mark != ",":
            raise text.wrong(f"expected a comma or }} after {key[:40]!r}")


def _array(text: _Text, key: str) -> Iterator[Any]:
    """Yield the elements of an array whose bracket was taken."""
    if text.look() == "]":
        text.next_mark()
        return
    while True:
        yield text.value(key)
        mark = text.next_mark()
        if mark == "]":
            return
        if mark != ",":
            raise text.wrong(f"expected a comma or ] in {key[:40]!r}")


class _Text:
    """The text of a file, read block by block; `_at` is where the next mark begins."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._buffer, self._at, self._before = "", 0, 0
        self._ended = False
        self._decoder = json.JSONDecoder()

    def look(self) -> str:
        """Return the next character that is no blank, without taking it; nothing at the end."""
        while True:
            self._at = _BLANK.match(self._buffer, self._at).end()  # type: ignore[union-attr]  # it fits anything
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def next_mark(self) -> str:
        """Take the next character that is no blank."""
        mark = self.look()
        self._at += len(mark)
        return mark

    def value(self, key: str) -> Any:
        """Take the next value as a whole.

        Raises:
            DataError: if it is no valid JSON, too large, or nested too deep.
        """
        if not self.look():
            raise self.wrong("the file ends early")
        while True:
            try:
                found, end = self._decoder.raw_decode(self._buffer, self._at)
            except RecursionError:
                raise self.wrong("nested too deep") from None
            except json.JSONDecodeError as error:
                if self._ended or not self._more():
                    raise self.wrong(
                        f"{error.msg}; is the file cut short?" if self._ended else error.msg
                    ) from None
            except ValueError as error:  # a number of thousands of digits
                raise self.wrong(str(error)) from None
            else:
                # A number may go on in the next block.
                if end < len(self._buffer) or self._ended or not self._more():
                    self._at = end
                    return found
            if len(self._buffer) - self._at > MAX_ELEMENT + _BLOCK:
                raise self.wrong(
                    f"no valid JSON, or an element of more than {MAX_ELEMENT:,} characters in {key[:40]!r}"
                )

    def _more(self) -> bool:
        """Read on; as much again as is held, so that a long element is not scanned often."""
        held = self._buffer[self._at :]
        block = self._file.read(max(_BLOCK, len(held)))
        self._before += self._at
        self._buffer, self._at = held + block, 0
        self._ended = not block
        return not self._ended

    def wrong(self, why: str) -> DataError:
        """Return the error that says what is wrong, and where."""
        near = self._buffer[max(0, self._at - 20) : self._at + 20]
        return DataError(
            f"{self._path}: not a readable JSON file: {why} (character {self._before + self._at:,}, near {near!r})."
        )
