"""Show the progress of a run: a line that updates on a terminal, plain lines elsewhere; only on the first process.

A stream that is seen once also has a table above the line on a terminal.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from everclip.training.live_table import LiveTable

Now = Callable[[], float]
"""A clock: seconds since some fixed moment."""


def clock(seconds: float) -> str:
    """Return `1:02:03` or `2:03`."""
    whole = round(max(0.0, seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def speed(samples: float, seconds: float) -> str:
    """Describe the speed of steps of `samples` samples that take `seconds` each."""
    rate = samples / max(1e-9, seconds)
    if rate < 1:
        return f"{seconds:.1f} s/step"
    return f"{rate:.0f} samples/s" if rate >= 10 else f"{rate:.1f} samples/s"


class Pace:
    """Seconds per unit of work, measured over the last units, because the speed of a machine may change.

    Args:
        now: the clock.
        window: length of the measured time in seconds.
        least: number of marks to keep at any age.
    """

    def __init__(self, now: Now = time.monotonic, window: float = 60.0, least: int = 6) -> None:
        self._now, self._window, self._least = now, window, least
        self._marks: deque[tuple[float, float]] = deque()
        self._before = (0.0, 0.0)

    def mark(self, done: float) -> None:
        """Record that `done` units are done now; fewer than before mean that the work started again."""
        if self._marks and done < self._marks[-1][1]:
            self.pause()
        now = self._now()
        self._marks.append((now, done))
        while len(self._marks) > self._least and now - self._marks[1][0] >= self._window:
            self._marks.popleft()

    def pause(self) -> None:
        """Pause the measurement until the next mark."""
        self._before = self._measured()
        self._marks.clear()

    @property
    def seconds(self) -> float | None:
        """Seconds per unit; `None` until two marks have been set."""
        spent, units = self._measured()
        return spent / units if units else None

    def _measured(self) -> tuple[float, float]:
        """Return seconds and units in the window; measurements before a pause count until the window is full."""
        spent, units = 0.0, 0.0
        if self._marks:
            (first, at), (last, to) = self._marks[0], self._marks[-1]
            spent, units = last - first, to - at
        share = max(0.0, 1 - spent / self._window)
        return spent + share * self._before[0], units + share * self._before[1]


class Progress:
    """Print one line per stage, with the time left.

    Args:
        quiet: print nothing.
        stream: the output; default standard error, so that standard output only holds results.
        every: seconds between lines if the stream is not a terminal.
        now: the clock.
    """

    def __init__(
        self,
        quiet: bool = False,
        stream: TextIO | None = None,
        every: float = 10.0,
        now: Now = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._quiet, self._now = quiet, now
        self._live = self._stream.isatty()
        self._table: LiveTable | None = None
        self._shown = float("-inf")
        self._every = 0.2 if self._live else every
        self._begin("", 0, 0)

    def _begin(self, label: str, done: int, total: int) -> None:
        self._label, self._total = label, total
        self._started = self._last = self._now()
        self._pace = Pace(self._now)
        self._pace.mark(done)

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` steps, `done` of them done earlier."""
        self._begin(label, done, total)
        if not self._live:
            self.say(f"{label}: {total - done} steps" if total else label)

    def update(
        self,
        done: int,
        note: str = "",
        total: int | None = None,
        left: float | None = None,
        run_left: float | None = None,
    ) -> None:
        """Report that `done` steps of the stage are done.

        Args:
            done: steps since the stage began, including those of earlier processes.
            note: further text for the line.
            total: the number of steps, if it was not known at the start.
            left: seconds left of the stage, if the caller knows it better than the pace of the last steps.
            run_left: seconds left of all stages together, if the caller knows it.
        """
        self._total = self._total if total is None else total
        self._pace.mark(done)
        now = self._now()
        if self._quiet or (now - self._last < self._every and done < self._total):
            return
        if not self._live and done >= self._total and now - self._started < self._every:
            return  # for a short stage, the first line is enough
        self._last = now
        if left is None and self._pace.seconds is not None:
            left = (self._total - done) * self._pace.seconds
        text = f"{self._label}: {done}/{self._total}  {note}  {'?' if left is None else clock(left)} left"
        text += f", run {clock(run_left)} left" if run_left is not None else ""
        self._write(text)

    def aside(self, what: str, done: int, total: int) -> None:
        """Report work of the stage besides its steps."""
        now = self._now()
        if not self._quiet and now - self._last >= self._every:
            self._last = now
            self._write(f"{self._label}: {what} {done}/{total}")

    def table(self, facts: Mapping[str, str]) -> None:
        """Show facts in a table below everything else, until `close`; only on a terminal."""
        if not self._live or self._quiet:
            return
        if self._table is None:
            from everclip.training.live_table import LiveTable

            self._table = LiveTable(self._stream)
        now = self._now()
        due = now - self._shown >= self._every
        self._shown = now if due else self._shown
        self._table.facts(facts, now=due)

    def close(self) -> None:
        """Leave the table as it is, and write below it from now on."""
        if self._table is not None:
            self._table.close()
            self._table = None

    def _write(self, text: str) -> None:
        if self._table is not None:
            self._table.line(text)
            return
        self._stream.write(f"\r\x1b[2K{text}" if self._live else f"{text}\n")
        self._stream.flush()

    def finish(self) -> None:
        """End the stage's line."""
        if self._table is not None:
            self._table.line("")
        elif self._live and not self._quiet:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def say(self, text: str) -> None:
        """Print a separate line."""
        if self._table is not None:
            self._table.say(text)
        elif not self._quiet:
            self._stream.write(f"\r\x1b[2K{text}\n" if self._live else f"{text}\n")
            self._stream.flush()
