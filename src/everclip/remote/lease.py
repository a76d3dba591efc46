"""A lease: who changes something far away. It names its holder, and ends if the holder does not renew it.

Leases are numbered files, and the one with the highest number holds: taking one creates the next number, which only one
process can. A store needs no more protection than its commits give: there, a lease is a courtesy to people and to long
work. A run far away relies on it.

Clocks of two machines may differ, so a lease of another machine that seems to have ended is watched until its holder
would have renewed it, and one that is not renewed for as long as it lasts has ended, whatever its date says.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from everclip.errors import CheckpointError, ConfigError, EverclipError, RunFolderError
from everclip.lock import now
from everclip.remote.files import EXCLUSIVE, RemoteFiles, Say
from everclip.sealing import sealed, unsealed

SECONDS = 90.0
"""A lease ends so long after it was renewed last."""

RENEWED = 20.0
"""Seconds between two renewals."""

PAUSE = 2.0
"""Seconds between two tries while waiting."""

WATCHED = 1.5 * RENEWED
"""Seconds that a lease of another machine must stay as it is before it is taken over."""


@dataclass(frozen=True)
class Subject:
    """What a lease is for.

    Attributes:
        folder: of the lease's files, below the URL.
        name: what it is, for people: "store".
        advice: what to do while another process holds it, for people.
        patient: whether a lease of another machine is watched, and waited for unless its holder renews it. A job that
            is started again after its machine was lost goes on by itself then.
    """

    folder: str
    name: str
    advice: str = "Wait for it, or give --wait"
    patient: bool = False


class LeaseLostError(RunFolderError):
    """Another process has taken over, because this one could not renew its lease in time."""


class Holder(BaseModel):
    """Who holds a lease.

    Attributes:
        verb, host, process, since: who, for people.
        token: unlike that of any other lease.
        kernel: names the running kernel and its process numbers; "" if unknown.
        until: when it ends, in seconds since 1970 (UTC).
        released: whether the holder has finished.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verb: str
    host: str
    process: int
    since: str
    token: str
    kernel: str
    until: float
    released: bool = False

    @property
    def here(self) -> bool:
        """Whether the holder runs, or ran, on this machine: its clock is this one's."""
        return self.kernel != "" and self.kernel == _kernel()

    @property
    def ended(self) -> bool:
        """Whether the lease holds no more: it is released or too old, or its process has ended on this machine."""
        return self.released or (self.here and not _runs(self.process)) or self.until < time.time()

    def __str__(self) -> str:
        return f"`{self.verb}` (process {self.process} on {self.host}, since {self.since})"


@dataclass
class Lease:
    """A lease that this process has taken.

    Attributes:
        files: where it lies.
        subject: what it is for.
        number: of its file.
        holder: this process.
        interrupted: who held the lease before and never released it.
    """

    files: RemoteFiles
    subject: Subject
    number: int
    holder: Holder
    interrupted: Holder | None

    def require(self) -> None:
        """Check that the lease is still this process's.

        Raises:
            LeaseLostError: if another process has taken over.
            RunFolderError: if the server does not answer, or refuses.
        """
        number, holder = _newest(self.files, self.subject)
        if number != self.number:
            by = "another process" if holder is None else str(holder)
            raise LeaseLostError(
                f"{self.files.url}: {by} took over, because this process could not renew its lease for "
                f"{SECONDS:.0f} s. Nothing was published; repeat the command."
            )

    def renew(self, released: bool = False) -> None:
        """Say that this process still works, or that it has finished."""
        until = time.time() + SECONDS
        self.holder = self.holder.model_copy(update={"until": until, "released": released})
        self.files.write(_key(self.subject, self.number), sealed(self.holder).encode())


@contextmanager
def leased(
    files: RemoteFiles, subject: Subject, verb: str, wait: bool = False, say: Say = lambda line: None
) -> Iterator[Lease]:
    """Hold the lease of what is changed.

    Args:
        files: where it lies.
        subject: what is changed.
        verb: what the holder does, for others.
        wait: wait for another holder in place of an error.
        say: called with lines for the user.

    Raises:
        RunFolderError: if another process holds it; names the holder.
        ConfigError: if this file system cannot create a file only if there is none.
    """
    lease = _take(files, subject, verb, wait, say)
    ended = threading.Event()
    thread = threading.Thread(target=_renewing, args=(lease, ended), name="everclip-lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        with suppress(EverclipError):  # it ends by itself; an error of the work counts more
            if _newest(files, subject)[0] == lease.number:
                lease.renew(released=True)


def _renewing(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(RENEWED):
        with suppress(EverclipError):  # tried again soon; `require` says so if it was too late
            if _newest(lease.files, lease.subject)[0] != lease.number:
                return
            lease.renew()


def _take(files: RemoteFiles, subject: Subject, verb: str, wait: bool, say: Say) -> Lease:
    if files.kind not in EXCLUSIVE:
        say(
            f"note: whether `{files.kind}://` creates a file only if there is none, in one step, is not known: let one "
            f"process at a time change this {subject.name}"
        )
    told, watch = False, _Watch()
    while True:
        number, before = _newest(files, subject)
        if before is None or watch.ended(number, before):
            mine = _holder(verb)
            if files.create(_key(subject, number + 1), sealed(mine).encode()):
                break  # else another process was faster
        elif not wait and (watch.renewed or not (before.ended or (subject.patient and not before.here))):
            raise RunFolderError(
                f"{files.url}: {before} works on this {subject.name}. {subject.advice}; if it has ended, its "
                f"lease ends within {SECONDS if watch.renewed else _left(before):.0f} s."
            )
        elif not told:
            say(
                f"{before} did not renew its lease; taken over if it does not in {WATCHED:.0f} s"
                if before.ended
                else f"waiting for {before}"
            )
            told = True
        time.sleep(PAUSE)
    _require_exclusive(files, subject, number + 1)
    files.remove([f"{subject.folder}/{name}" for name in _names(files, subject) if int(name[:9]) <= number])
    interrupted = None if before is None or before.released else before
    return Lease(files, subject, number + 1, mine, interrupted)


def _left(holder: Holder) -> float:
    return min(max(0.0, holder.until - time.time()), SECONDS)  # a clock that is ahead makes it no longer


class _Watch:
    """Decides whether a lease has ended, without trust in the clock of another machine.

    Attributes:
        renewed: whether its holder has renewed it since it was seen first.
    """

    def __init__(self) -> None:
        self.renewed = False
        self._seen: tuple[int, str, float] | None = None
        self._since = 0.0

    def ended(self, number: int, holder: Holder) -> bool:
        """Say whether a lease as it is now has ended; called again and again."""
        if holder.released or holder.here:
            return holder.ended
        if self._seen != (now_ := (number, holder.token, holder.until)):
            self.renewed = self._seen is not None and self._seen[:2] == now_[:2]
            self._seen, self._since = now_, time.monotonic()
        return time.monotonic() - self._since >= (WATCHED if holder.ended else SECONDS)


def _require_exclusive(files: RemoteFiles, subject: Subject, number: int) -> None:
    """Create a file that is there: a server that lets it happen would let two processes hold the lease at once.

    Raises:
        ConfigError: if it does.
    """
    if files.create(_key(subject, number), sealed(_holder("check")).encode()):
        with suppress(EverclipError):
            files.remove([_key(subject, number)])
        raise ConfigError(f"{files.url}: {files.not_exclusive} (the server replaced one that was there).")


def _holder(verb: str) -> Holder:
    return Holder(
        verb=verb,
        host=socket.gethostname(),
        process=os.getpid(),
        since=now(),
        token=uuid.uuid4().hex,
        kernel=_kernel(),
        until=time.time() + SECONDS,
    )


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing; /proc may hide the processes of other users
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _kernel() -> str:
    """Return what two processes that see each other's numbers share: the start of the kernel, and the namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _key(subject: Subject, number: int) -> str:
    return f"{subject.folder}/{number:09d}.json"


def _names(files: RemoteFiles, subject: Subject) -> list[str]:
    return [name for name in files.names(subject.folder) if name[:9].isdigit()]


def _newest(files: RemoteFiles, subject: Subject) -> tuple[int, Holder | None]:
    """Return the highest number and its holder; `None` if there is none, or it is damaged, which ends it."""
    names = _names(files, subject)
    if not names:
        return 0, None
    number = int(names[-1][:9])
    try:
        data = files.read(_key(subject, number))
        return number, unsealed(data.decode(errors="replace"), Holder, files.place(_key(subject, number)))
    except (FileNotFoundError, CheckpointError):
        return number, None
