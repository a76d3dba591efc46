"""How often searches returned each item: counted in memory, added to a file now and then. No query is kept.

The counts say what is worth embedding first. They are worth no wait and no error: a search never fails because of them,
and if another process holds the file, or the store is read-only, they stay in memory.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from everclip.errors import CheckpointError, EverclipError, RunFolderError
from everclip.files import clear_leftovers, warn_once, write_bytes_atomic
from everclip.lock import locked

FOLDER, COUNTS, LOCK = "hits", "counts.parquet", ".lock"
MOST = 100_000
"""Items that have a count, at most."""

EVERY = 60.0
"""Seconds between two writes of a server."""

PAUSE = 0.02

log = logging.getLogger(__name__)


class Hits:
    """Counts the items that searches of this process return. May be used by several threads.

    Args:
        index: the folder of the index.
        every: seconds after which `flush_if_due` writes.
    """

    def __init__(self, index: Path, every: float = EVERY) -> None:
        self._folder, self._every = index / FOLDER, every
        self._counts, self._lock = Counter[str](), threading.Lock()
        self._written = time.monotonic()

    def add(self, ids: Iterable[str]) -> None:
        """Count items, each once for every time it is named."""
        with self._lock:
            self._counts.update(ids)
            if len(self._counts) > 2 * MOST:
                self._counts = Counter(bounded(self._counts))

    def flush_if_due(self) -> None:
        """Add the counts to the file, if that is long ago."""
        if time.monotonic() - self._written >= self._every:
            self.flush()

    def flush(self, wait: float = 0.0) -> bool:
        """Add the counts to the file; return whether they are in it. Otherwise they stay in memory.

        Args:
            wait: seconds to wait for another process that writes it.
        """
        self._written = time.monotonic()
        with self._lock:
            taken, self._counts = self._counts, Counter()
        if not taken:
            return True
        try:
            with _alone(self._folder, wait):
                _write(self._folder, bounded(Counter(_readable(self._folder)) + taken))
        except (OSError, EverclipError) as error:
            warn_once(str(self._folder), f"{self._folder}: what searches return is not counted now ({error})")
            with self._lock:
                self._counts.update(taken)
            return False
        return True


@contextmanager
def _alone(folder: Path, wait: float) -> Iterator[None]:
    """Hold the lock of the file."""
    folder.mkdir(exist_ok=True)
    until = time.monotonic() + wait
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder / LOCK, "search", what="file of hits", hint="Wait for it."))
                break
            except RunFolderError:
                if time.monotonic() >= until:
                    raise
                time.sleep(PAUSE)
        clear_leftovers(folder)
        yield


def bounded(counts: Mapping[str, int]) -> dict[str, int]:
    """Return at most `MOST` counts: as long as there are more, all are halved, so that old ones fade."""
    found = dict(counts)
    while len(found) > MOST:
        halved = {i: count // 2 for i, count in found.items() if count > 1}
        if len(halved) == len(found) or not halved:
            break
        found = halved
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST])


def held(index: Path) -> dict[str, int]:
    """Return id -> how often searches returned it, the most frequent first; empty if nothing was counted.

    Args:
        index: the folder of the index.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = index / FOLDER / COUNTS
    if not path.is_file():
        return {}
    try:
        rows = pq.read_table(path, columns=["id", "count"])
        return dict(zip(rows.column("id").to_pylist(), rows.column("count").to_pylist(), strict=True))
    except (OSError, ValueError, KeyError) as error:  # pa.ArrowInvalid is a ValueError
        raise CheckpointError(
            f"{path}: damaged ({str(error).splitlines()[0]}). Delete it; counting begins anew."
        ) from error


def _readable(folder: Path) -> dict[str, int]:
    """Return what is counted; a damaged file is named and begun anew."""
    try:
        return held(folder.parent)
    except CheckpointError as error:
        log.warning("%s", error)
        return {}


def _write(folder: Path, counts: Mapping[str, int]) -> None:
    columns = {
        "id": pa.array(list(counts), pa.string()),
        "count": pa.array(list(counts.values()), pa.int64()),
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, compression="zstd")
    write_bytes_atomic(folder / COUNTS, file.getvalue())


def forget(index: Path, ids: Iterable[str]) -> None:
    """Remove the counts of items that were removed from the index.

    Raises:
        CheckpointError, RunFolderError: if the file cannot be written.
    """
    gone = frozenset(ids)
    if gone & held(index).keys():
        with _alone(index / FOLDER, 10.0):
            _write(index / FOLDER, {i: n for i, n in _readable(index / FOLDER).items() if i not in gone})
