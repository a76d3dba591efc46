"""One writer at a time: a lock that names its holder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from everclip.errors import RunFolderError

_PAUSE = 0.5  # seconds between two tries


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def locked(
    path: Path,
    verb: str,
    wait: bool = False,
    say: Callable[[str], None] = lambda line: None,
    what: str = "store",
    hint: str = "Wait for it, or give --wait.",
) -> Iterator[None]:
    """Hold a lock. The system frees it when the process ends, however it ends.

    Args:
        path: the lock file.
        verb: what the holder does, for others.
        wait: wait for another holder in place of an error.
        say: called with a line once if it waits.
        what: what the lock protects, for people.
        hint: what to do if another process holds it, for people.

    Raises:
        RunFolderError: if another process holds it; names the holder.
    """
    try:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  # closed below, after the work
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be opened for writing ({error.strerror or error}).") from error
    with file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = _holder(path)
                if not wait:
                    raise RunFolderError(f"{path.parent}: {holder} works on this {what}. {hint}") from None
                if not told:
                    say(f"waiting for {holder}")
                    told = True
                time.sleep(_PAUSE)
        file.seek(0)
        file.truncate()
        holder_now = {"verb": verb, "process": os.getpid(), "host": socket.gethostname(), "since": now()}
        file.write(json.dumps(holder_now))
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file; `False` if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _holder(path: Path) -> str:
    try:
        of = json.loads(path.read_text(encoding="utf-8"))
        return f"`{of['verb']}` (process {of['process']} on {of['host']}, since {of['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it has just begun and not yet written its name
