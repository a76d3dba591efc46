"""The journal of a store (SQLite): who did what, and what was interrupted."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from everclip.errors import CheckpointError
from everclip.lock import now

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY, at TEXT NOT NULL, verb TEXT NOT NULL, version TEXT, outcome TEXT NOT NULL,
  detail TEXT NOT NULL, host TEXT NOT NULL, process INTEGER NOT NULL)
"""
BEGUN, DONE, FAILED, INTERRUPTED = "begun", "done", "failed", "interrupted"


class DiskFullError(CheckpointError):
    """There is no room for another line."""


@dataclass(frozen=True)
class Entry:
    """One action: `outcome` is begun, done, failed or interrupted."""

    number: int
    at: str
    verb: str
    version: str | None
    outcome: str
    detail: str


class Journal:
    """The actions on a store, in order. The files of the store are what counts; the journal says how they came.

    Args:
        path: the database; created if needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, timeout=30)
            try:
                with connection:
                    connection.execute(_SCHEMA)
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise DiskFullError(
                    f"{self._path}: the disk is full. What was saved before is intact: make room (`everclip prune`), "
                    "then repeat the command."
                ) from error
            raise CheckpointError(
                f"{self._path}: cannot be used ({error}). It says only what was done: move it away, and the next "
                "action begins a new one."
            ) from error

    def begin(self, verb: str, version: str | None = None, detail: str = "") -> int:
        """Record that an action begins; return its number."""
        row = (now(), verb, version, BEGUN, detail, socket.gethostname(), os.getpid())
        with self._open() as database:
            cursor = database.execute(
                "INSERT INTO events (at, verb, version, outcome, detail, host, process) VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def end(self, number: int, outcome: str, version: str | None, detail: str) -> None:
        """Record how an action ended."""
        with self._open() as database:
            database.execute(
                "UPDATE events SET outcome = ?, version = ?, detail = ? WHERE number = ?",
                (outcome, version, detail, number),
            )

    def add_interrupted(self, verb: str, at: str, host: str, process: int) -> None:
        """Record an action of another machine that began and never ended."""
        with self._open() as database:
            database.execute(
                "INSERT INTO events (at, verb, version, outcome, detail, host, process) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (at, verb, None, INTERRUPTED, "", host, process),
            )

    def mark_interrupted(self) -> list[Entry]:
        """Mark actions that never ended as interrupted, and return them. Call it only while holding the lock."""
        found = [entry for entry in self.entries() if entry.outcome == BEGUN]
        if found:
            with self._open() as database:
                database.execute("UPDATE events SET outcome = ? WHERE outcome = ?", (INTERRUPTED, BEGUN))
        return found

    def entries(self, last: int | None = None) -> list[Entry]:
        """Return the actions, oldest first; with `last`, only so many of the newest."""
        with self._open() as database:
            rows = database.execute(
                "SELECT number, at, verb, version, outcome, detail FROM events ORDER BY number DESC LIMIT ?",
                (-1 if last is None else last,),
            ).fetchall()
        return [Entry(*row) for row in reversed(rows)]
