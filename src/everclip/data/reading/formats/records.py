"""Read records of a CSV or TSV: a bad record costs only its first line, and no open quote swallows the rows below."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from everclip.data.reading.formats.dialect import is_picture_like
from everclip.data.reading.formats.raw import IMAGE_ENDINGS
from everclip.errors import DataError

MAX_CELL = 1_000_000
"""Limit of characters in a cell; an open quote would otherwise swallow the rest of the file."""

_READ_AGAIN = 4
_LEAST_AGAIN = 50_000_000  # characters, whatever the file's size
_MOST_LINES = 100  # per record, if quotes are mostly plain text

_UNCLOSED = 'a cell begins with a quote (") that is not closed; double the quotes inside cells ("") and close each cell'
_REASONS = {
    "unexpected end of data": _UNCLOSED,
    "field larger": f"a cell of more than {MAX_CELL:,} characters: a quote that is not closed?",
    "expected after": 'text follows the quote (") that closes a cell; double the quotes inside cells ("")',
    "new-line": "a line ends inside a cell that is not quoted",
}


class Lines:
    """Lines of a file that can be put back, so that a bad record costs only its first line."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = iter(lines)
        self._ahead: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0
        self.read_again = 0
        self.most: int | None = None
        """Limit of lines per record, if there is one."""

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        if self.most is not None and len(self.taken) >= self.most:
            raise StopIteration
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def peek(self, count: int = 1, characters: int = 1) -> list[str]:
        """Return the next lines without consuming them: at most `count`, and about `characters` in all."""
        size = sum(map(len, self._ahead)) if count > 1 else 0
        while len(self._ahead) < count and (size < characters or not self._ahead):
            line = next(self._lines, None)
            if line is None:
                break
            self._ahead.append(line)
            size += len(line)
        return list(islice(self._ahead, count))

    def start(self) -> None:
        """Begin a record."""
        self.taken = []

    def keep_first(self) -> str:
        """Return the first line of the record and put the others back; count the characters that are read again."""
        self.read_again += sum(map(len, self.taken[1:]))
        self._ahead.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1
        return self.taken[0]


@dataclass
class Records:
    """The records of a table.

    Attributes:
        path: the file.
        lines: its lines.
        separator: between cells.
        width: cells of a record, once they are known.
        literal_quotes: number of lines whose quotes are plain text.
    """

    path: Path
    lines: Lines
    separator: str
    width: int | None = None
    literal_quotes: int = 0

    @property
    def _quotes_are_text(self) -> bool:
        """Whether quotes may be plain text: programs write tables with tabs or bars without quoting."""
        return self.separator in "\t|"

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        """Yield (line, cells) per record, or (line, problem).

        Raises:
            DataError: if so many quotes are not closed that reading again would take too long.
        """
        most = max(_LEAST_AGAIN, _READ_AGAIN * self.path.stat().st_size)
        self.lines.most = _MOST_LINES if self._quotes_are_text else None
        while ahead := self.lines.peek():
            self.lines.start()
            first = self.lines.number + 1
            try:
                record: list[str] | str = self._next(ahead[0])
                if len(self.lines.taken) > 1 and self._swallows(self.lines.taken[1:]):
                    record = self._one_line(self.lines.keep_first(), _UNCLOSED)
            except StopIteration:
                return
            except csv.Error as error:
                record = self._one_line(self.lines.keep_first(), str(error))
            if self.lines.read_again > most:
                raise DataError(
                    f"{self.path}: line {first:,} and many before it open a quote that is not closed. Double the "
                    'quotes inside cells ("") and close each cell that begins with one.'
                )
            if record:
                yield first, record

    def _next(self, line: str) -> list[str]:
        # Blanks before a quote are not part of the cell; other blanks are kept: they may be part of a name.
        spaced = '"' in line and re.search(re.escape(self.separator) + ' +"', line) is not None
        # strict: a quote that closes too early or never is an error, not a guess.
        return next(csv.reader(self.lines, delimiter=self.separator, strict=True, skipinitialspace=spaced))

    def _swallows(self, later: list[str]) -> bool:
        """Whether a quoted cell contains complete rows: lines with the right number of cells and an image's name."""
        if self.width is None or self.width < 2:
            return False
        rows = (line.rstrip("\r\n").split(self.separator) for line in later)
        return any(len(cells) == self.width and any(map(is_picture_like, cells)) for cells in rows)

    def _one_line(self, line: str, why: str) -> list[str] | str:
        """Return the cells of a line outside the CSV rules, or the problem."""
        if '\\"' in line:
            try:
                cells = next(
                    csv.reader(
                        [line], delimiter=self.separator, strict=True, doublequote=False, escapechar="\\"
                    )
                )
                if len(cells) == self.width:
                    return cells
            except (csv.Error, StopIteration):
                pass
        cells = line.rstrip("\r\n").split(self.separator)
        if self._quotes_are_text and len(cells) == self.width and max(map(len, cells)) <= MAX_CELL:
            self.literal_quotes += 1
            return cells
        return next((text for words, text in _REASONS.items() if words in why), why)


_PATH = rf"[^\s,;|][^\t,;|]*?\.(?:{'|'.join(IMAGE_ENDINGS)})(?:#\d+)?"
_PATH_AND_TEXT = re.compile(rf"({_PATH})[ ]+(\S.*?)\s*", re.IGNORECASE)
_NUMBER_AND_PATH = re.compile(rf"(\d+)[ ]+({_PATH})\s*", re.IGNORECASE)


def path_and_text(line: str) -> list[str] | None:
    """Return the two cells of a line `path text` or `number path` separated by a blank, as in ImageNet's lists."""
    found = _NUMBER_AND_PATH.fullmatch(line) or _PATH_AND_TEXT.fullmatch(line)
    return None if found is None else [found.group(1), found.group(2)]


@dataclass
class PathLines:
    """The records of a list with a path and a text in each line; the counterpart of `Records`."""

    lines: Lines
    separator: str = " "
    literal_quotes: int = 0

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        """Yield (line, cells) per line that is not blank, or (line, problem)."""
        for line in self.lines:
            self.lines.start()
            if line.strip():
                yield (
                    self.lines.number,
                    path_and_text(line) or "expected the path of an image, a blank and a text",
                )
