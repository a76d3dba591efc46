"""Showing how far a run is: a bar on a terminal, plain lines elsewhere, silence on all processes but the first."""

from __future__ import annotations

import sys
import time
from typing import TextIO


def clock(seconds: float) -> str:
    """Return `1:02:03` or `2:03`."""
    whole = round(max(0.0, seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


class Progress:
    """Prints one line per stage, with time left.

    Args:
        quiet: print nothing.
        stream: where to; default standard error, so that standard output stays for results.
        every: seconds between lines when the stream is no terminal.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live = self._stream.isatty()
        self._every = 0.2 if self._live else every
        self._begin("", 0, 0)

    def _begin(self, label: str, done: int, total: int) -> None:
        self._label, self._first, self._total = label, done, total
        self._started = self._last = time.monotonic()

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` steps, of which `done` were done before."""
        self._begin(label, done, total)
        if not self._live:
            self.say(f"{label}: {total - done} steps" if total else label)

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Report that `done` steps of the stage are done; `total` where it was not known at the start."""
        self._total = self._total if total is None else total
        now = time.monotonic()
        if self._quiet or (now - self._last < self._every and done < self._total):
            return
        if not self._live and done >= self._total and now - self._started < self._every:
            return  # a short stage has said enough by its first line
        self._last = now
        rate = (done - self._first) / max(1e-9, now - self._started)
        left = clock((self._total - done) / rate) if rate > 0 else "?"
        text = f"{self._label}: {done}/{self._total}  {note}  {left} left"
        self._stream.write(f"\r\x1b[2K{text}" if self._live else f"{text}\n")
        self._stream.flush()

    def finish(self) -> None:
        """End the stage's line."""
        if self._live and not self._quiet:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def say(self, text: str) -> None:
        """Print one line of its own."""
        if not self._quiet:
            self._stream.write(f"\r\x1b[2K{text}\n" if self._live else f"{text}\n")
            self._stream.flush()
