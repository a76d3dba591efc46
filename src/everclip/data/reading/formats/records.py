"""Records of a CSV or TSV: one bad record costs its first line only, and no quote swallows the rows behind it."""

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
"""Characters of one cell; a quote that is never closed would otherwise swallow the rest of the file."""

_READ_AGAIN = 4
_LEAST_AGAIN = 50_000_000  # characters, whatever the file's size
_MOST_LINES = 100  # of a record where quotes are mostly plain text

_UNCLOSED = 'a cell begins with a quote (") that is not closed; double the quotes inside cells ("") and close each cell'
_REASONS = {
    "unexpected end of data": _UNCLOSED,
    "field larger": f"a cell of more than {MAX_CELL:,} characters: a quote that is not closed?",
    "expected after": 'text follows the quote (") that closes a cell; double the quotes inside cells ("")',
    "new-line": "a line ends inside a cell that is not quoted",
}


class Lines:
    """Lines of a file that can be given back, so that a bad record costs its first line only."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = iter(lines)
        self._ahead: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0
        self.read_again = 0
        self.most: int | None = None
        """Lines of one record, if there is a bound."""

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
        """Return the next lines without taking them: at most `count`, and few above `characters`."""
        size = sum(map(len, self._ahead)) if count > 1 else 0
        while len(self._ahead) < count and (size < characters or not self._ahead):
            line = next(self._lines, None)
            if line is None:
                break
            self._ahead.append(line)
            size += len(line)
        return list(islice(self._ahead, count))

    def start(self) -> None:
        """Forget what was taken: a record begins."""
        self.taken = []

    def keep_first(self) -> str:
        """Give all lines of the record back but its first, which is returned; count what is read again."""
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
        as_they_stand: lines whose quotes are taken as plain text.
    """

    path: Path
    lines: Lines
    separator: str
    width: int | None = None
    as_they_stand: int = 0

    @property
    def _quotes_are_text(self) -> bool:
        """Whether a quote may be a mark like any other: programs write tables by tabs or bars without quoting."""
        return self.separator in "\t|"

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        """Yield (line, cells) per record, or (line, what is wrong with it).

        Raises:
            DataError: where so many quotes are not closed that going back to each would take for ever.
        """
        most = max(_LEAST_AGAIN, _READ_AGAIN * self.path.stat().st_size)
        self.lines.most = _MOST_LINES if self._quotes_are_text else None
        while ahead := self.lines.peek():
            self.lines.start()
            first = self.lines.number + 1
            try:
                record: list[str] | str = self._next(ahead[0])
                if len(self.lines.taken) > 1 and self._swallows(self.lines.taken[1:]):
                    record = self._alone(self.lines.keep_first(), _UNCLOSED)
            except StopIteration:
                return
            except csv.Error as error:
                record = self._alone(self.lines.keep_first(), str(error))
            if self.lines.read_again > most:
                raise DataError(
                    f"{self.path}: line {first:,} and many before it open a quote that is not closed. Double the "
                    'quotes inside cells ("") and close each cell that begins with one.'
                )
            if record:
                yield first, record

    def _next(self, line: str) -> list[str]:
        # Blanks before a quote belong to no cell; other blanks stay, since they may belong to a name.
        spaced = '"' in line and re.search(re.escape(self.separator) + ' +"', line) is not None
        # strict: a quote that ends too early or never is an error instead of a guess.
        return next(csv.reader(self.lines, delimiter=self.separator, strict=True, skipinitialspace=spaced))

    def _swallows(self, later: list[str]) -> bool:
        """Whether a quoted cell holds whole rows: lines of as many cells as a row has, with a picture's name."""
        if self.width is None or self.width < 2:
            return False
        rows = (line.rstrip("\r\n").split(self.separator) for line in later)
        return any(len(cells) == self.width and any(map(is_picture_like, cells)) for cells in rows)

    def _alone(self, line: str, why: str) -> list[str] | str:
        """Return the cells of a line that is no sound record, or what is wrong with it."""
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
            self.as_they_stand += 1
            return cells
        return next((text for words, text in _REASONS.items() if words in why), why)


_PATH = rf"[^\s,;|][^\t,;|]*?\.(?:{'|'.join(IMAGE_ENDINGS)})(?:#\d+)?"
_PATH_AND_TEXT = re.compile(rf"({_PATH})[ ]+(\S.*?)\s*", re.IGNORECASE)
_NUMBER_AND_PATH = re.compile(rf"(\d+)[ ]+({_PATH})\s*", re.IGNORECASE)


def path_and_text(line: str) -> list[str] | None:
    """Return the two cells of a line `path text` (or `number path`) that only a blank separates: ImageNet's lists."""
    found = _NUMBER_AND_PATH.fullmatch(line) or _PATH_AND_TEXT.fullmatch(line)
    return None if found is None else [found.group(1), found.group(2)]


@dataclass
class PathLines:
    """The records of a list with a path and a text in every line; what `Records` is for tables."""

    lines: Lines
    separator: str = " "
    as_they_stand: int = 0

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        """Yield (line, cells) per line that holds something, or (line, what is wrong with it)."""
        for line in self.lines:
            self.lines.start()
            if line.strip():
                yield (
                    self.lines.number,
                    path_and_text(line) or "expected the path of a picture, a blank and a text",
                )
