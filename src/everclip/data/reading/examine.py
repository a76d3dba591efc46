"""Examine every image once: hash it, decode it, and record its facts or why it cannot be used."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from everclip.data.pictures.location import bytes_at
from everclip.data.pictures.picture_error import PictureError
from everclip.data.pictures.rendering import DEFAULT, Rendering
from everclip.data.reading.facts import SCHEMA, Facts, facts_of
from everclip.data.reading.verdicts import Verdict, Verdicts
from everclip.distributed import gather_objects, rank, world

BATCH = 4096
"""Images between two writes to the cache of verdicts; each write takes a few hundredths of a second."""

_TICK = 512

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Examined:
    """The facts of the images of some rows.

    Attributes:
        facts: one row per image that can be used, in order.
        good: the positions of these images.
        bad: position, reason and detail of the others.
    """

    facts: pa.Table
    good: list[int]
    bad: list[tuple[int, str, str]]


def examine(
    images: pa.ChunkedArray,
    wanted: Sequence[int],
    tick: Tick | None = None,
    threads: int | None = None,
    rendering: Rendering = DEFAULT,
) -> Examined:
    """Read, hash and decode the images of a column; known images are not decoded again.

    Memory grows only with the facts of the images. Several processes share the work and end with the same verdicts,
    so that all of them have the same rows.

    Args:
        images: of type `everclip.data.pictures.location.PLACE`.
        wanted: positions to examine.
        tick: called with (done, total) from time to time.
        threads: number of decoding threads; default: the number of cores, at most 8.
        rendering: background and range of values, as the data block says.
    """
    mine = np.array_split(np.asarray(wanted, np.int64), world())[rank()]
    found = _examine(images, mine.tolist(), tick, threads, rendering)
    parts = gather_objects(found)
    return Examined(
        pa.concat_tables([part.facts for part in parts]),
        [i for part in parts for i in part.good],
        [entry for part in parts for entry in part.bad],
    )


def _examine(
    images: pa.ChunkedArray,
    positions: Sequence[int],
    tick: Tick | None,
    threads: int | None,
    rendering: Rendering,
) -> Examined:
    memory, total = Verdicts(), len(positions)
    tables, good, bad = [SCHEMA.empty_table()], [], []
    rows: list[dict[str, Any]] = []
    new: list[tuple[bytes, Verdict]] = []
    try:
        found = _verdicts((images[position] for position in positions), memory, threads, rendering)
        for done, (position, (key, verdict, known)) in enumerate(zip(positions, found, strict=True), 1):
            if isinstance(verdict, Facts):
                rows.append(vars(verdict))
                good.append(position)
            else:
                bad.append((position, *verdict))
            if key is not None and not known:
                new.append((key, verdict))
            if len(new) >= BATCH or done == total:
                memory.put(new)
                new = []
            if done % BATCH == 0 or done == total:
                tables.append(pa.Table.from_pylist(rows, schema=SCHEMA))
                rows = []
            if tick is not None and (done % _TICK == 0 or done == total):
                tick(done, total)
    finally:
        memory.close()
    return Examined(pa.concat_tables(tables), good, bad)


def _verdicts(
    images: Iterable[pa.Scalar], memory: Verdicts, threads: int | None, rendering: Rendering
) -> Iterator[tuple[bytes | None, Verdict, bool]]:
    """Yield (hash, verdict, whether it was known) per image, in order."""

    def look(place: pa.Scalar) -> tuple[bytes | None, Verdict, bool]:
        try:
            data = bytes_at(place.as_py() or dict.fromkeys(("bytes", "path", "offset", "size")))
        except PictureError as error:
            return None, (error.reason, error.detail), False
        content = hashlib.sha256(data).digest()
        # Another rendering gives another image.
        key = content if rendering == DEFAULT else hashlib.sha256(content + str(rendering).encode()).digest()
        known = memory.get(key)
        if known is not None:
            return key, known, True
        try:
            return key, facts_of(data, "picture", content, rendering), False
        except PictureError as error:
            # A lack of memory is a fact about this moment, not about the image.
            kept = None if isinstance(error.__cause__, MemoryError) else key
            return kept, (error.reason, error.detail), False

    count = threads or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(count, thread_name_prefix="everclip-examine") as pool:
        waiting: deque[Future[tuple[bytes | None, Verdict, bool]]] = deque()
        try:
            for place in images:
                waiting.append(pool.submit(look, place))
                if len(waiting) > 4 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
