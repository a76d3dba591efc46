"""A small table at the end of a terminal that changes in place, with the progress line below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text


class LiveTable:
    """Facts, one a row, and a line; other lines scroll above them.

    Args:
        stream: a terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        console = Console(file=stream, force_terminal=True, highlight=False)
        self._facts: dict[str, str] = {}
        self._line = ""
        # Nothing else is redirected through it: standard output may be a file that holds results.
        self._live = Live(
            self._shown(),
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def facts(self, facts: Mapping[str, str], now: bool = True) -> None:
        """Keep facts, name -> value; show them at once or with the next change."""
        self._facts = dict(facts)
        if now:
            self._refresh()

    def line(self, text: str) -> None:
        """Show a progress line."""
        self._line = text
        self._refresh()

    def say(self, text: str) -> None:
        """Print a line above the table."""
        # Text and not a string: names of sets may hold brackets, which rich reads as styles.
        self._live.console.print(Text(text))

    def close(self) -> None:
        """Leave the last facts on the terminal."""
        self.line("")
        self._live.stop()

    def _refresh(self) -> None:
        self._live.update(self._shown(), refresh=True)

    def _shown(self) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column()
        for name, value in self._facts.items():
            table.add_row(Text(name), Text(value))
        return Group(table, Text(self._line)) if self._line else Group(table)
