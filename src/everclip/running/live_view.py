"""What a person sees of a stream that is seen once while it is learned: facts in a table, and a line per row."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from everclip.contracts import Stream
from everclip.evaluation.assemble import headline_value
from everclip.evaluation.results import Column, Row
from everclip.running.time_left import TimeLeft
from everclip.scenarios.online import StreamPlan, first_positions
from everclip.training.progress import Progress, clock, speed
from everclip.training.watching import StepLog

_BARS = "▁▂▃▄▅▆▇█"


class StreamView:
    """Shows a stream: on a terminal as a table that changes, elsewhere as a line per row.

    Args:
        stream: the planned stream; `None` for other streams, of which nothing is shown here.
        progress: the one place that writes to the terminal.
        headline: protocol and metric that are shown.
    """

    def __init__(self, stream: StreamPlan | None, progress: Progress, headline: Mapping[str, str]) -> None:
        self._stream, self._progress, self._headline = stream, progress, headline
        self._facts: dict[str, str] = {}
        # Of each task: the samples before it, and where in it a class appears for the first time in the stream.
        self._starts: list[tuple[int, int]] = []
        self._firsts: list[int] = []
        known: set[str] = set()
        before = 0
        for task in () if stream is None else stream.scenario.tasks:
            self._starts.append((before, before + len(task.train)))
            new = {key: at for key, at in first_positions(task.train).items() if key not in known}
            self._firsts += [before + at for at in new.values()]
            known |= new.keys()
            before += len(task.train)
        self._firsts.sort()

    def step(self, log: StepLog, task: int, main: Stream | None, time_left: TimeLeft) -> None:
        """Show a step of a task.

        Args:
            log: of the step.
            task: index of the task.
            main: the samples that it learns.
            time_left: knows the pace.
        """
        if self._stream is None or main is None or main.order != "once":
            return
        start, stop = self._starts[task]
        seen = min(start + (log.step // main.times + 1) * main.batch_size, stop)
        seconds, left = time_left.step_seconds(), time_left.run_left()
        self._facts |= {
            "samples seen": f"{seen:,} of {self._stream.rows[-1].samples:,}",
            "classes seen": f"{bisect_left(self._firsts, seen)} of {len(self._firsts)}",
            "speed": "?" if seconds is None else speed(log.samples, seconds),
            "time left": "?" if left is None else clock(left),
        }
        self._progress.table(self._facts)

    def row(self, rows: Sequence[Row], columns: Sequence[Column]) -> None:
        """Show the last row."""
        if self._stream is None or len(rows) < 2:
            return
        for column in columns:
            values = [headline_value(row, column, self._headline) for row in rows]
            if values[-1] is not None:
                self._facts[column.name] = f"{100 * values[-1]:.1f} %  {bars(values)}"
        if len(rows) > len(self._stream.rows):
            self._facts.pop("time left", None)  # that was the last row
        self._progress.table(self._facts)
        self._progress.say(live_line(rows, columns, self._headline))


def bars(values: Sequence[float | None]) -> str:
    """Return a bar per value that is there, from 0 to the best of them: `▂▄▅▆`."""
    known = [value for value in values if value is not None]
    top = max([*known, 1e-9])
    return "".join(_BARS[min(7, int(8 * value / top))] for value in known)


def live_line(rows: Sequence[Row], columns: Sequence[Column], headline: Mapping[str, str]) -> str:
    """Return a line on the last row of a stream, to print while it is learned: scores, classes, and the curve so far.

    `1,024 samples: test 43.2 % (23 classes) ▂▄▅▆, names 25.0 %`; the bars are from 0 to the best score so far.
    """
    parts = []
    for column in columns:
        values = [headline_value(row, column, headline) for row in rows]
        if values[-1] is None:
            continue
        classes = len(rows[-1].per_class.get(column.name, {})) if column.group == "task" else 0
        counted = f" ({classes} classes) {bars(values)}" if classes else ""
        parts.append(f"{column.name} {100 * values[-1]:.1f} %{counted}")
    return f"{rows[-1].label}: {', '.join(parts) or 'nothing to measure yet'}"
