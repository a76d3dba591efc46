"""Cache of verdicts on images, by the hash of their bytes, in a small SQLite file.

Every image is decoded once to learn whether it can be used; the next load only reads and hashes it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

import PIL

from everclip.data.pictures.images import RULES
from everclip.data.reading.facts import Facts
from everclip.files import cache_folder, warn_once

Verdict = Facts | tuple[str, str]
"""Facts of a usable image, or (reason, detail) of another."""

_COLUMNS = "width, height, bytes, mode, format, frames, dhash, sha256, span, background, blank"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, reason TEXT, detail TEXT, width INTEGER, "
    "height INTEGER, bytes INTEGER, mode TEXT, format TEXT, frames INTEGER, dhash INTEGER, sha256 TEXT, "
    "span TEXT, background TEXT, blank INTEGER) WITHOUT ROWID"
)


def default_path() -> Path:
    """Return the default file."""
    return cache_folder() / f"pictures-{RULES}-pillow-{PIL.__version__}.sqlite"


class Verdicts:
    """A cache of verdicts, safe for several threads and processes.

    A damaged or unwritable file is reported and not used: all images are then decoded again.

    Args:
        path: the file; default: below the cache folder, one per version of everclip's rules and of Pillow.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or default_path()
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self._path, timeout=10, check_same_thread=False)
            self._file.execute(_TABLE)
            self._file.commit()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def get(self, key: bytes) -> Verdict | None:
        """Return the verdict on the image whose SHA-256 is `key`, or `None`."""
        with self._lock:
            if self._file is None:
                return None
            try:
                row = self._file.execute(
                    f"SELECT reason, detail, {_COLUMNS} FROM verdicts WHERE key = ?", (key,)
                ).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
                return None
        if row is None:
            return None
        if row[0] is not None:
            return str(row[0]), str(row[1])
        width, height, size, mode, kind, frames, dhash, sha256, span, background, blank = row[2:]
        hashes = dhash % 2**64, sha256
        return Facts(width, height, size, mode, kind, frames, *hashes, span, background, bool(blank))

    def put(self, found: Iterable[tuple[bytes, Verdict]]) -> None:
        """Store verdicts by key."""
        rows = [(key, *_row(verdict)) for key, verdict in found]
        with self._lock:
            if self._file is None or not rows:
                return
            try:
                with self._file:
                    self._file.executemany(
                        f"INSERT OR REPLACE INTO verdicts VALUES ({','.join('?' * 14)})", rows
                    )
            except sqlite3.Error as error:
                self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _give_up(self, error: Exception) -> None:
        warn_once(
            str(self._path),
            f"{self._path}: the cache of decoded images cannot be used ({error}); every image is decoded again. "
            "Remove the file, or point EVERCLIP_CACHE to a folder that can be written.",
        )
        if self._file is not None:
            self._file.close()
            self._file = None


def _row(verdict: Verdict) -> tuple[object, ...]:
    if isinstance(verdict, tuple):
        return (*verdict, *[None] * 11)
    *first, dhash, sha256, span, background, blank = vars(verdict).values()
    # SQLite's integers are signed.
    signed = dhash - 2**64 if dhash >= 2**63 else dhash
    return (None, None, *first, signed, sha256, span, background, blank)
