"""Fit a table into the width of a terminal: as it is, turned, or cut into several tables."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

LONGEST_NAME = 24
"""Characters of a word in the first column that are not broken; longer ones may be a user's names."""


UNLIMITED = 10_000
"""Characters: a width in which every table fits, to measure what it needs."""


@dataclass(frozen=True)
class Grid:
    """A table as text: `cells[row][column]`, of one or more lines each.

    Attributes:
        title: above the table.
        rows: the first cell of each row.
        columns: the headings of the other columns.
        cells: the other cells.
        corner: the heading of the first column.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    corner: str = "method"

    def turned(self) -> Grid:
        """Return the table with rows and columns exchanged."""
        return replace(
            self,
            rows=self.columns,
            columns=self.rows,
            cells=tuple(zip(*self.cells, strict=True)),
            corner="",
        )

    def part(self, start: int, stop: int) -> Grid:
        """Return the table with some of its columns."""
        return replace(
            self, columns=self.columns[start:stop], cells=tuple(row[start:stop] for row in self.cells)
        )

    def table(self) -> Table:
        """Return the table, whose columns are at least as wide as the words of their headings and their cells."""
        table = Table(
            title=Text(self.title, style="bold"), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
        )
        named = min(LONGEST_NAME, _longest([word for name in self.rows for word in name.split()]))
        table.add_column(self.corner, overflow="fold", min_width=named)
        for number, heading in enumerate(self.columns):
            lines = [line for row in self.cells for line in row[number].splitlines()]
            width = _longest([*lines, *(word[:LONGEST_NAME] for word in heading.split())])
            table.add_column(Text(heading), justify="right", overflow="fold", min_width=width)
        for name, cells in zip(self.rows, self.cells, strict=True):
            table.add_row(Text(name), *(Text(cell) for cell in cells))
        return table


def terminal_width() -> int:
    """Return the width of the terminal, or `COLUMNS` if it is set; 120 for a file or a pipe."""
    return shutil.get_terminal_size((120, 24)).columns


def _longest(texts: Sequence[str]) -> int:
    return max(map(len, texts), default=0)


def fitting(grid: Grid, console: Console) -> list[Table]:
    """Return a table as wide as the console at most, in one piece if possible.

    If it is too wide, it is turned; if it is then too wide as well, its columns are spread over several tables. A
    single column that is too wide is folded.
    """

    unlimited = console.options.update(width=UNLIMITED)

    def fits(candidate: Grid) -> bool:
        return console.measure(candidate.table(), options=unlimited).minimum <= console.width

    for whole in (grid, grid.turned()):
        if fits(whole):
            return [whole.table()]
    parts, start = [], 0
    while start < len(grid.columns):
        stop = start + 1
        while stop < len(grid.columns) and fits(grid.part(start, stop + 1)):
            stop += 1
        parts.append(grid.part(start, stop))
        start = stop
    return [(part if part is parts[0] else replace(part, title="")).table() for part in parts]
