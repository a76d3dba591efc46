"""The time that a run took: seconds by stage over all its sessions, including killed ones.

A killed run goes back to its newest checkpoint, but the time after that checkpoint was spent. So the time is not stored
in the checkpoint but in a file of its own, `sessions.json`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE = "sessions.json"

WRITE_EVERY = 1.0
"""Seconds between two writes of the file; a killed session loses at most this time."""

Seconds = dict[str, float]


class Clock:
    """Counts the seconds of the current session by stage, and keeps those of earlier sessions.

    Args:
        folder: the run folder.
        now: the clock, in seconds.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._file, self._writes, self._now = folder / FILE, False, now
        self._earlier: list[Seconds] = []
        self._session: Seconds = {}
        self._stage, self._since = "loading", now()
        self._written = self._since

    def begin(self, known: Mapping[str, float], writes: bool) -> str | None:
        """Read the earlier sessions. The current session began when this object was created.

        Args:
            known: their seconds by stage from the checkpoint, in case the file is missing or damaged.
            writes: whether this process writes the file (only the first process does).

        Returns:
            The problem with the file, or `None`.
        """
        self._writes, problem = writes, None
        if self._file.is_file():
            try:
                self._earlier = _sessions(json.loads(self._file.read_text(encoding="utf-8")))
                return None
            except (OSError, ValueError) as error:
                problem = (
                    f"{self._file} cannot be read ({error}): the time after the newest checkpoint is lost"
                )
        self._earlier = [dict(known)] if known else []
        return problem

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block as `name`, not as the surrounding stage."""
        outer = self._stage
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def idle(self) -> None:
        """End the stage `loading`; count the time outside of `stage` blocks as `other`."""
        self._switch("other")

    def move(self, seconds: float, to: str) -> None:
        """Move some seconds from the current stage to another one."""
        self._spend()
        self._session[self._stage] -= seconds
        self._session[to] = self._session.get(to, 0.0) + seconds

    def tick(self) -> str | None:
        """Write the file if it is due.

        Returns:
            Why it could not be written (once; then writing is off), or `None`.
        """
        return self.write() if self._now() - self._written >= WRITE_EVERY else None

    def write(self) -> str | None:
        """Write the file now; see `tick`."""
        self._spend()
        self._written = self._now()
        if not self._writes:
            return None
        temporary = self._file.with_name(
            f".{FILE}.{os.getpid()}.tmp"
        )  # renamed at the end, so that no reader sees half a file
        try:
            text = json.dumps({"sessions": [*self._earlier, _rounded(self._session)]})
            temporary.write_text(f"{text}\n", encoding="utf-8")
            temporary.replace(self._file)
        except OSError as error:
            self._writes = False
            temporary.unlink(missing_ok=True)
            return f"{self._file} cannot be written ({error.strerror}): a kill loses the time since the checkpoint"
        return None

    def seconds(self) -> Seconds:
        """Return the seconds by stage over all sessions."""
        self._spend()
        total: Seconds = {}
        for session in (*self._earlier, _rounded(self._session)):
            for name, value in session.items():
                total[name] = total.get(name, 0.0) + value
        return total

    @property
    def sessions(self) -> int:
        """The number of sessions, including the current one."""
        return len(self._earlier) + 1

    def _switch(self, name: str) -> None:
        self._spend()
        self._stage = name

    def _spend(self) -> None:
        now = self._now()
        self._session[self._stage] = self._session.get(self._stage, 0.0) + now - self._since
        self._since = now


def _rounded(seconds: Seconds) -> Seconds:
    return {name: round(value, 3) for name, value in seconds.items()}


def _sessions(document: Any) -> list[Seconds]:
    """Return the sessions in the document.

    Raises:
        ValueError: if the document has another form.
    """
    sessions = document.get("sessions") if isinstance(document, dict) else None
    if not isinstance(sessions, list):
        raise ValueError('expected {"sessions": [...]}')
    for session in sessions:
        if not isinstance(session, dict) or not all(_is_time(value) for value in session.values()):
            raise ValueError("expected seconds by stage in every session")
    return [{str(name): float(value) for name, value in session.items()} for session in sessions]


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
