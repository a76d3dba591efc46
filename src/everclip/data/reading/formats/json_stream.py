"""Read a JSON file of any size, one element at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from everclip.data.reading.formats.text_file import open_text, text_encoding
from everclip.errors import DataError

MAX_ELEMENT = 16 * 1024 * 1024
"""Characters of one element; a longer one is refused."""

_BLOCK = 1024 * 1024
_BLANK = re.compile(r"[ \t\r\n]*")
_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_LAST_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])', re.DOTALL)
_CUT = "the file ends early: it is cut short; write or download it again"


def elements(path: Path, encoding: str | None = None, arrays_only: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (key, element) of a JSON document, in order.

    A top-level array gives its elements with the key ""; so do several arrays in a row. A top-level object gives the
    elements of its arrays, and its other values, with their keys. A comma after the last element is ignored. Bytes that
    cannot be decoded become lone surrogates.

    Args:
        path: the file.
        encoding: of the file; default: detected.
        arrays_only: whether to yield only elements of arrays.

    Raises:
        DataError: if the file is not such a document, ends early, or has an element that is too large.
    """
    name = encoding or text_encoding(path).name
    with open_text(path, name) as file:
        yield from _document(_Text(path, file), arrays_only)


def values(path: Path, encoding: str) -> Iterator[Any]:
    """Yield the values of a file of consecutive values: `{...} {...}`; each may span several lines.

    Raises:
        DataError: if a value is not valid JSON, or too large.
    """
    with open_text(path, encoding) as file:
        text = _Text(path, file)
        while text.look():
            yield text.value("a value")
            if text.look() == ",":
                text.next_mark()


def _document(text: _Text, arrays_only: bool) -> Iterator[tuple[str, Any]]:
    first = text.next_mark()
    if first == "[":
        while first == "[":
            for element in _array(text, ""):
                yield "", element
            first = text.next_mark() if text.look() == "[" else ""
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
    elif not first:
        raise text.wrong("the file is empty")
    elif first in "/#":
        raise text.wrong("it begins with a comment, which JSON does not allow; remove it")
    else:
        raise text.wrong("expected an object or an array at the top")
    if text.look():
        raise text.wrong("something follows after the end; give two documents a file each")


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
        if mark == "," and text.look() == "}":
            mark = text.next_mark()
        if mark == "}":
            return
        if mark != ",":
            raise text.wrong(_CUT if not mark else f"expected a comma or }} after {key[:40]!r}")


def _array(text: _Text, key: str) -> Iterator[Any]:
    """Yield the elements of an array after its opening bracket."""
    if text.look() == "]":
        text.next_mark()
        return
    text.whole = 0
    while True:
        yield text.value(key)
        text.whole += 1
        mark = text.next_mark()
        if mark == "," and text.look() == "]":
            mark = text.next_mark()
        if mark == "]":
            return
        if mark != ",":
            raise text.wrong(
                _CUT if not mark else f"expected a comma or ]{f' in {key[:40]!r}' if key else ''}"
            )


class _Text:
    """The text of a file, read block by block; `_at` is the position of the next token."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._buffer, self._at, self._before = "", 0, 0
        self._ended = False
        self._decoder = json.JSONDecoder()
        self._lines_before = 0
        self.whole = 0
        """Complete elements of the current array so far."""

    def look(self) -> str:
        """Return the next non-blank character without consuming it; an empty text at the end."""
        while True:
            blank = _BLANK.match(self._buffer, self._at)
            assert blank is not None  # it fits anything
            self._at = blank.end()
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def next_mark(self) -> str:
        """Consume and return the next non-blank character."""
        mark = self.look()
        self._at += len(mark)
        return mark

    def value(self, key: str) -> Any:
        """Consume and return the next value.

        Raises:
            DataError: if it is not valid JSON, too large, or nested too deep.
        """
        if not self.look():
            raise self.wrong(_CUT)
        while True:
            try:
                found, end = self._decoder.raw_decode(self._buffer, self._at)
            except RecursionError:
                raise self.wrong("nested too deep") from None
            except json.JSONDecodeError as error:
                closed = self._end()
                if closed is not None:
                    return self._mended(closed, error)
                if self._ended or not self._more():
                    raise self.wrong(_CUT) from None
            except ValueError as error:  # a number of thousands of digits
                raise self.wrong(str(error)) from None
            else:
                # A number may continue in the next block.
                if end < len(self._buffer) or self._ended or not self._more():
                    self._at = end
                    return found
            if len(self._buffer) - self._at > MAX_ELEMENT + _BLOCK:
                raise self.wrong(
                    f"no valid JSON, or an element of more than {MAX_ELEMENT:,} characters in {key[:40]!r}"
                )

    def _end(self) -> int | None:
        """Return the end of the current value by its brackets; `None` if it is not in the buffer."""
        depth = 0
        for found in _MARK.finditer(self._buffer, self._at):
            mark = found.group()
            if depth == 0 and (mark not in ("{", "[") or found.start() > self._at):
                break  # no object, no array
            depth += (mark in ("{", "[")) - (mark in ("}", "]"))
            if depth == 0:
                return found.end()
        # Other values end with their line.
        if self._buffer[self._at] in "{[":
            return None
        end = self._buffer.find("\n", self._at)
        return len(self._buffer) if self._ended else end if end >= 0 else None

    def _mended(self, end: int, error: json.JSONDecodeError) -> Any:
        """Return the value up to `end`, parsed without commas before closing brackets.

        Raises:
            DataError: if that is not valid JSON either.
        """
        text = self._buffer[self._at : end]
        try:
            found = json.loads(_LAST_COMMA.sub(lambda comma: comma.group(1) or "", text))
        except (ValueError, RecursionError):
            why = "an object as Python prints it, with single quotes; write it by json.dumps"
            self._at = min(max(error.pos, self._at), len(self._buffer))
            raise self.wrong(
                why if text.startswith("{'") else f"{error.msg[0].lower()}{error.msg[1:]}"
            ) from None
        self._at = end
        return found

    def _more(self) -> bool:
        """Read more; as much as the buffer holds, so that a long element is not scanned too often."""
        held = self._buffer[self._at :]
        block = self._file.read(max(_BLOCK, len(held)))
        self._before += self._at
        self._lines_before += self._buffer.count("\n", 0, self._at)
        self._buffer, self._at = held + block, 0
        self._ended = not block
        return not self._ended

    def wrong(self, why: str) -> DataError:
        """Return an error with its reason and position."""
        near = self._buffer[max(0, self._at - 20) : self._at + 20]
        line = self._lines_before + self._buffer.count("\n", 0, self._at) + 1
        whole = f"; {self.whole:,} elements before it are whole" if self.whole else ""
        return DataError(
            f"{self._path}: not a readable JSON file: {why} (line {line:,}, character {self._before + self._at:,}, "
            f"near {near!r}{whole})."
        )
