"""Fetches the images of coming batches from far away, while the model learns from the present one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from everclip.data.table import Table

THREADS = 8
"""Requests at the same time."""

REMEMBERED = 64
"""Batches whose stored samples a `StreamMemory` remembers, for those who prepare batches ahead."""

Rows = list[tuple[Table, int]]


class ReadAhead:
    """Brings the blocks of coming steps into the cache; the order is known, so nothing is guessed.

    Args:
        rows: the samples of a step.
        start, stop: the steps.
        ahead: number of steps to be ahead.
    """

    def __init__(self, rows: Callable[[int], Rows], start: int, stop: int, ahead: int) -> None:
        self._rows, self._next, self._stop, self._ahead = rows, start, stop, ahead
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="everclip-ahead")
        self._waiting: deque[Future[None]] = deque()
        self._closed = threading.Event()

    def until(self, step: int) -> None:
        """Begin to fetch the steps up to `ahead` after `step`."""
        while self._next < min(step + self._ahead, self._stop):
            self._waiting.append(self._pool.submit(self._fetch, self._next))
            self._next += 1
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

    def _fetch(self, step: int) -> None:
        for table, position in self._rows(step):
            if self._closed.is_set():
                return
            table.fetch(position)

    def close(self) -> None:
        """Stop; the images that are being fetched are finished, their steps are not."""
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
