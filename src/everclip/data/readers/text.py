"""CSV and TSV: every cell is text, only the empty cell is missing, and a broken row costs nothing but itself.

The standard library reads them: pandas and Arrow, which `datasets` uses, give up the whole file for one bad row, and
take words such as `NA` for missing values and `007` for a number.
"""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from everclip.data.quarantine import Entry
from everclip.data.readers.raw import Raw, require_few
from everclip.errors import DataError

MAX_CELL = 1_000_000
"""Characters of one cell; a quote that is never closed would otherwise swallow the rest of the file."""

MAX_LINE = 16 * 1024 * 1024
"""Characters of one line; what follows them counts as another."""

_READ_AGAIN = 4
_LEAST_AGAIN = 50_000_000  # characters, whatever the file's size

_BLOCK = 65_536


def read_text_table(path: Path) -> Raw:
    """Read a `.csv` or `.tsv` file.

    Raises:
        DataError: if there is no header, it is not UTF-8, or names a column twice; or for quotes without end.
    """
    csv.field_size_limit(MAX_CELL)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(iter(lambda: file.readline(MAX_LINE), ""))
        first = lines.peek()
        notes = []
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        if delimiter not in first and (other := next((d for d in ";\t" if d in first), None)):
            delimiter = other
            notes.append(f"{path.name}: cells are parted by {'a tab' if other == chr(9) else repr(other)}")
        records = _records(path, lines, delimiter)
        header = _header(path, next(records, None))
        columns, numbers, broken = _rows(path, header, records)
    return Raw(path.name, columns, numbers, broken, root=path.parent, notes=notes, textual=True)


def _header(path: Path, found: tuple[int, list[str] | str] | None) -> list[str]:
    names = [] if found is None or isinstance(found[1], str) else [name.strip() for name in found[1]]
    if not any(names):
        why = f" ({found[1]})" if found is not None and isinstance(found[1], str) else ""
        raise DataError(
            f"{path}: not a readable {path.suffix[1:]} file: the first line names no columns{why}."
        )
    if any("\udc80" <= c <= "\udcff" for name in names for c in name) or "\0" in "".join(names):
        raise DataError(
            f"{path}: not a readable {path.suffix[1:]} file: its first line is not UTF-8 text. Save it as UTF-8."
        )
    names = [name or f"column {i + 1}" for i, name in enumerate(names)]
    require_few(names, str(path))
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: the column {twice!r} stands in the first line more than once; rename one.")
    return names


def _rows(
    path: Path, header: list[str], records: Iterator[tuple[int, list[str] | str]]
) -> tuple[pa.Table, list[int], list[Entry]]:
    schema = pa.schema([(name, pa.string()) for name in header])
    tables, numbers, broken = [schema.empty_table()], [], []
    cells: list[list[str | None]] = [[] for _ in header]
    row = 0
    for line, record in records:
        row += 1
        problem = _problem(record, len(header))
        if problem is not None:
            broken.append(Entry(row, f"{path.name}, row {row} (line {line})", *problem))
            continue
        for column, cell in zip(cells, record, strict=True):
            column.append(cell or None)
        numbers.append(row)
        if len(cells[0]) == _BLOCK:
            tables.append(pa.table([pa.array(c, pa.string()) for c in cells], schema=schema))
            cells = [[] for _ in header]
    tables.append(pa.table([pa.array(c, pa.string()) for c in cells], schema=schema))
    return pa.concat_tables(tables), numbers, broken


def _problem(record: list[str] | str, width: int) -> tuple[str, str] | None:
    if isinstance(record, str):
        return "bad-row", record
    if len(record) != width:
        return "bad-row", f"{len(record)} cells, expected {width}"
    if any("\udc80" <= c <= "\udcff" for cell in record if not cell.isascii() for c in cell):
        return "bad-utf8", "not UTF-8 text"
    return None


class _Lines:
    """Lines of a file that can be given back, so that a bad record costs its first line only."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = iter(lines)
        self._ahead: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0
        self.read_again = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def peek(self) -> str:
        """Return the next line without taking it, or nothing at the end."""
        if not self._ahead:
            self._ahead.extend(line for _, line in zip(range(1), self._lines, strict=False))
        return self._ahead[0] if self._ahead else ""

    def start(self) -> None:
        """Forget what was taken: a record begins."""
        self.taken = []

    def keep_first(self) -> None:
        """Give all lines of the record back but its first; count what is read again."""
        self.read_again += sum(map(len, self.taken[1:]))
        self._ahead.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def _records(path: Path, lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (line, cells) per record, or (line, what is wrong with it).

    Raises:
        DataError: where so many quotes are not closed that going back to each would take for ever.
    """
    most = max(_LEAST_AGAIN, _READ_AGAIN * path.stat().st_size)
    while True:
        lines.start()
        first = lines.number + 1
        try:
            # strict: a quote that ends too early or never is an error instead of a guess.
            record = next(csv.reader(lines, delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            lines.keep_first()
            if lines.read_again > most:
                raise DataError(
                    f"{path}: line {first:,} and many before it open a quote that is not closed. Double the quotes "
                    'inside cells ("") and close each cell that begins with one.'
                ) from error
            yield first, f"{error}"
            continue
        if record:
            yield first, record
