"""Micro-batching: requests that arrive together are encoded in one forward pass, by one thread.

A job waits at most `wait` seconds for others of its version and kind. A job with more items than a batch takes turns
with the others. Jobs in the background (of a shadow version) run only while no other waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from everclip.contracts import Features
from everclip.features.encoding import joined
from everclip.serve.refusal import Refusal

Kind = Literal["image", "text"]
T = TypeVar("T")


class Encoding(Protocol):
    """A loaded version, as the batcher uses it."""

    @property
    def one_by_one(self) -> bool:
        """Whether an item's features would depend on the others of its batch, so that it is encoded alone."""

    def encode(self, kind: Kind, items: Sequence[Any]) -> Features:
        """Return features `(N, ...)` of N items."""


@dataclass(eq=False)
class Job:
    """Items of one request that are encoded by one version, and what is done with their features."""

    version: Encoding
    kind: Kind
    items: Sequence[Any]
    finish: Callable[[Features], Any]
    future: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    taken: int = 0
    parts: list[Features] = field(default_factory=list)

    @property
    def left(self) -> int:
        """The number of items that no batch holds yet."""
        return len(self.items) - self.taken


@dataclass(frozen=True)
class Slice:
    """The part of a job that is in a batch."""

    job: Job
    start: int
    stop: int

    @property
    def items(self) -> Sequence[Any]:
        """The items."""
        return self.job.items[self.start : self.stop]


Seen = Callable[[Kind, int, float], None]
"""Called with the kind, the number of items and the seconds of each batch."""


class Batcher:
    """One thread that encodes what requests ask for.

    Args:
        batch: items that are encoded together at most.
        wait: seconds that the first job of a batch waits for others.
        queue: items that may be admitted at a time.
        seen: called after each batch.
    """

    def __init__(self, batch: int, wait: float, queue: int, seen: Seen = lambda kind, n, s: None) -> None:
        self._batch, self._wait, self._queue, self._seen = batch, wait, queue, seen
        self._jobs: deque[Job] = deque()
        self._background: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._admitted = 0
        self._pace = 0.01  # seconds per item, a running mean
        self._thread = threading.Thread(target=self._run, name="everclip-encode", daemon=True)
        self._thread.start()

    @property
    def admitted(self) -> int:
        """The items of all requests that are not answered yet."""
        return self._admitted

    @property
    def works(self) -> bool:
        """Whether the thread is alive."""
        return self._thread.is_alive()

    @contextmanager
    def admitting(self, items: int) -> Iterator[None]:
        """Hold room for a request's items, from before its images are decoded until it is answered.

        A request that is larger than the queue is admitted alone.

        Raises:
            Refusal: if the queue is full (503); says when to try again.
        """
        with self._changed:
            if self._admitted and self._admitted + items > self._queue:
                seconds = max(1, round(self._admitted * self._pace + 0.5))
                raise Refusal(
                    503,
                    "busy",
                    f"{self._admitted} images and texts wait; at most {self._queue} may. Try again in {seconds} s.",
                    {"Retry-After": str(seconds)},
                )
            self._admitted += items
        try:
            yield
        finally:
            with self._changed:
                self._admitted -= items

    def submit(
        self, version: Encoding, kind: Kind, items: Sequence[Any], finish: Callable[[Features], T]
    ) -> Future[T]:
        """Encode items with a version.

        Args:
            version: encodes.
            kind: of the items.
            items: pixels `(3, S, S)` or texts; at least one.
            finish: called in the encoding thread with the features of the items; its result is the future's.
        """
        return self._put(self._jobs, Job(version, kind, items, finish)).future

    def submit_in_background(
        self, version: Encoding, kind: Kind, items: Sequence[Any], finish: Callable[[Features], T]
    ) -> Future[T] | None:
        """Encode items while no other job waits; `None`, and nothing is done, if much waits already."""
        if sum(job.left for job in list(self._background)) + len(items) > self._queue:
            return None
        return self._put(self._background, Job(version, kind, items, finish)).future

    def _put(self, jobs: deque[Job], job: Job) -> Job:
        with self._changed:
            if self._stopping:
                raise Refusal(503, "stopping", "The server stops.", {"Retry-After": "5"})
            jobs.append(job)
            self._changed.notify()
        return job

    def stop(self) -> None:
        """Encode what waits, then end the thread."""
        with self._changed:
            self._stopping = True
            self._background.clear()
            self._changed.notify()
        self._thread.join(timeout=60)

    # -- the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while slices := self._next():
            self._encode(slices)

    def _next(self) -> list[Slice]:
        """Return the next batch; empty if the thread shall end."""
        with self._changed:
            while not self._jobs and not self._background:
                if self._stopping:
                    return []
                self._changed.wait()
            jobs = self._jobs or self._background
            first = jobs[0]
            most = 1 if first.version.one_by_one else self._batch
            while jobs is self._jobs:
                waiting = sum(job.left for job in self._alike(jobs, first))
                more = first.arrived + self._wait - time.monotonic()
                if waiting >= most or more <= 0 or self._stopping:
                    break
                self._changed.wait(more)
            return self._cut(jobs, first, most)

    @staticmethod
    def _alike(jobs: deque[Job], first: Job) -> list[Job]:
        return [job for job in jobs if job.version is first.version and job.kind == first.kind]

    def _cut(self, jobs: deque[Job], first: Job, most: int) -> list[Slice]:
        slices = []
        for job in self._alike(jobs, first):
            if most == 0:
                break
            count = min(job.left, most)
            slices.append(Slice(job, job.taken, job.taken + count))
            job.taken += count
            most -= count
            jobs.remove(job)
            if job.left:  # behind the others, which wait less than it takes
                jobs.append(job)
        return slices

    def _encode(self, slices: list[Slice]) -> None:
        first = slices[0].job
        items = [item for part in slices for item in part.items]
        started = time.monotonic()
        try:
            features = first.version.encode(first.kind, items)
        except Exception as error:  # noqa: BLE001  # each request gets its error, and the thread lives on
            if len(slices) > 1:  # one of them must not fail the others
                logging.getLogger("everclip").warning(
                    "a batch of %d requests failed (%s); each is encoded alone", len(slices), error
                )
                for part in slices:
                    self._encode([part])
            else:
                self._fail(first, error)
            return
        seconds = time.monotonic() - started
        self._pace += 0.1 * (seconds / len(items) - self._pace)
        self._seen(first.kind, len(items), seconds)
        at = 0
        for part in slices:
            size = part.stop - part.start
            part.job.parts.append({key: values[at : at + size] for key, values in features.items()})
            at += size
            if part.stop == len(part.job.items):
                self._finish(part.job)

    def _finish(self, job: Job) -> None:
        try:
            found = job.finish(joined(job.parts))
        except Exception as error:  # noqa: BLE001  # as above
            self._fail(job, error)
            return
        if job.future.set_running_or_notify_cancel():
            job.future.set_result(found)

    def _fail(self, job: Job, error: Exception) -> None:
        with self._changed:
            for jobs in (self._jobs, self._background):
                if job in jobs:
                    jobs.remove(job)
        if not job.future.done() and job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)
