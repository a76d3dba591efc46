"""Work in forked processes: what the parent has imported is there at once, and no run sees another's state."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """Something to do in a forked process, which is ended after `seconds`; `label` comes back with its exit code."""

    label: str
    work: Callable[[], int]
    seconds: float


def fork(work: Callable[[], int]) -> int:
    """Start `work` in a forked process without output; return its process id."""
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.setsid()
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return pid


def in_children(jobs: Iterable[Job], at_once: int) -> Iterator[tuple[str, int | None, float]]:
    """Yield label, exit code (`None`: it took too long) and seconds of each job, in the order in which they end."""
    waiting, running = iter(jobs), dict[int, tuple[Job, float]]()
    try:
        while True:
            while len(running) < at_once and (job := next(waiting, None)) is not None:
                running[fork(job.work)] = (job, time.monotonic())
            if not running:
                return
            time.sleep(0.02)
            yield from _ended(running)
    finally:  # whoever stops asking leaves nothing behind
        for pid in running:
            _end(pid)


def _ended(running: dict[int, tuple[Job, float]]) -> Iterator[tuple[str, int | None, float]]:
    for pid, (job, start) in list(running.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        took = time.monotonic() - start
        if done:
            del running[pid]
            yield job.label, os.waitstatus_to_exitcode(status), took
        elif took > job.seconds:
            del running[pid]
            _end(pid)
            yield job.label, None, took


def _end(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
