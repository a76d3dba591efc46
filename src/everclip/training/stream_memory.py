"""Stored samples of a stream that is seen once: after every batch its samples are offered to a buffer.

What is stored before a batch is a function of the seed and of the batches before it. So nothing has to be saved to
continue inside the stream, and threads and processes agree.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from everclip.data.sampling.order import generator
from everclip.data.sampling.read_ahead import REMEMBERED
from everclip.data.table import Table
from everclip.training.buffer import Buffer


class BufferMemory:
    """The samples that a buffer adds to each batch.

    Args:
        buffer: its content before the stream; not changed.
        tables: origin -> the table of samples that are stored before the stream.
        origin: the name of the stream's table in the buffer.
        table: the samples of the stream, in order.
        size: new samples per batch.
        count: stored samples per batch, as far as there are so many.
        first: number of the stream's first batch.
    """

    def __init__(
        self,
        buffer: Buffer,
        tables: Mapping[str, Table],
        origin: str,
        table: Table,
        size: int,
        count: int,
        first: int = 0,
    ) -> None:
        self._start, self._settings = buffer.state(), (buffer.kind, buffer.size, buffer.seed)
        self._tables, self._origin = {**tables, origin: table}, origin
        self._size, self.count, self._first = size, count, first
        self._positions: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()
        self._restart()

    def _restart(self) -> None:
        self._buffer = Buffer(*self._settings)
        self._buffer.restore(self._start)
        self._drawn: dict[int, list[tuple[Table, int]]] = {}
        self._next = self._first

    def drawn(self, batch: int) -> list[tuple[Table, int]]:
        """Return the stored samples of a batch as (table, position) pairs; they come from earlier batches."""
        with self._lock:
            if batch < self._next and batch not in self._drawn:
                self._restart()
            while self._next <= batch:
                self._advance()
            return self._drawn[batch]

    def _advance(self) -> None:
        at = self._next
        self._drawn[at] = self._draw(at)
        self._drawn.pop(at - REMEMBERED, None)
        table, start = self._tables[self._origin], (at - self._first) * self._size
        self._buffer.offer(self._origin, table.select(range(start, min(start + self._size, len(table)))))
        self._next = at + 1

    def _draw(self, batch: int) -> list[tuple[Table, int]]:
        items = self._buffer.items
        draw = generator("stream memory", self._buffer.seed, batch)
        if not items:
            return []
        chosen = sorted(draw.choice(len(items), min(self.count, len(items)), replace=False).tolist())
        return [self._place(items[i]) for i in chosen]

    def _place(self, item: tuple[str, str, str]) -> tuple[Table, int]:
        origin, name, _ = item
        if origin not in self._positions:
            self._positions[origin] = {own: i for i, own in enumerate(self._tables[origin].ids)}
        return self._tables[origin], self._positions[origin][name]

    def state_after(self, batches: int) -> dict[str, Any]:
        """Return the state of the buffer (`Buffer.state`) after a number of batches of the whole stream."""
        with self._lock:
            if batches < self._next:
                self._restart()
            while self._next < batches:
                self._advance()
            return self._buffer.state()
