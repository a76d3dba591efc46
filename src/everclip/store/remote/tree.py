"""A folder on this machine with the files of a store far away, and a cache of contents that such folders share.

    CACHE/stores/1f2e.../contents/ab/abcdef...   contents by SHA-256, as far as they were fetched
    CACHE/stores/1f2e.../trees/4711-x1/          the working copy of one process, of links to contents

Each process has a tree of its own, so that no other process sees a change before it is published; a tree ends with its
process.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from everclip.errors import CheckpointError
from everclip.files import disk_errors, file_digest
from everclip.lock import locked
from everclip.remote.scanning import Stamp

RECENT = 3600.0
"""Seconds that a content stays although no file needs it."""


@dataclass(frozen=True)
class Placed:
    """A file as it was put into a tree: the SHA-256 of its content, and what the system says of it."""

    sha256: str
    stamp: Stamp


class Contents:
    """Contents by SHA-256, shared by all trees of a store on this machine.

    Args:
        folder: created when something is put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, sha256: str) -> Path:
        """Return the file of a content."""
        return self._folder / sha256[:2] / sha256

    def fetch(self, sha256: str, size: int, download: Callable[[Path], None]) -> bytes | None:
        """Make sure that a content is there.

        Args:
            sha256: of the content.
            size: in bytes; a file of another size (a power failure) is fetched again.
            download: writes it into a file.

        Returns:
            What was downloaded if it is another content (damaged), twice in a row; else `None`.
        """
        path = self.path(sha256)
        if path.is_file() and path.stat().st_size == size:
            return None
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{sha256[:8]}.", suffix=".tmp", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            try:
                download(temporary)
                if file_digest(temporary) != sha256:
                    download(temporary)  # a connection that was cut may give less without an error
                if file_digest(temporary) != sha256:
                    return temporary.read_bytes()
                temporary.chmod(0o644)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return None

    def drop(self, sha256: str) -> None:
        """Remove a content that is damaged on this machine."""
        self.path(sha256).unlink(missing_ok=True)

    def put(self, path: Path, sha256: str, copy: bool) -> None:
        """Keep the content of a file, so that it need not be fetched later."""
        if not self.path(sha256).is_file():
            self.path(sha256).parent.mkdir(parents=True, exist_ok=True)
            link(path, self.path(sha256), copy)

    def keep(self, needed: Iterable[str]) -> None:
        """Remove all contents but some, and those that another process may have fetched to put into its tree now."""
        kept, old = set(needed), time.time() - RECENT
        for folder in self._folder.glob("??"):
            for path in list(folder.iterdir()):
                if path.name not in kept and _is_older(path, old):
                    path.unlink(missing_ok=True)


def _is_older(path: Path, moment: float) -> bool:
    with suppress(FileNotFoundError):  # another process removed it
        return path.stat().st_mtime < moment
    return False


def link(source: Path, target: Path, copy: bool = False) -> None:
    """Let `target` have the content of `source`, without its bytes twice if the disk can; one rename.

    Raises:
        FileNotFoundError: if another process has removed `source`.
        CheckpointError: if `target` cannot be written.
    """
    try:
        _link(source, target, copy)
    except CheckpointError as error:
        if isinstance(error.__cause__, FileNotFoundError) and not source.exists():
            raise FileNotFoundError(str(source)) from error
        raise


def _link(source: Path, target: Path, copy: bool) -> None:
    with disk_errors(target):
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            if copy:
                shutil.copyfile(source, temporary)
            else:
                try:
                    os.link(source, temporary)
                except FileNotFoundError:
                    raise
                except OSError:  # a disk without links
                    shutil.copyfile(source, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def new_tree(folder: Path) -> Path:
    """Make an empty tree that is removed when this process ends; remove those of killed processes.

    A learner reads its base when it is saved, so a tree lives longer than the object that it was made for.

    Args:
        folder: of all trees of a store.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", "open", wait=True, what="working copy"):
            for lock in folder.glob("*.alive"):
                _remove_if_ended(lock)
            tree = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=folder))
            alive = open(tree.with_suffix(".alive"), "w", encoding="utf-8")  # noqa: SIM115  # held until the end
            fcntl.flock(alive, fcntl.LOCK_EX)
    atexit.register(_end, tree, alive, os.getpid())
    return tree


def _remove_if_ended(lock: Path) -> None:
    with suppress(FileNotFoundError), open(lock, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        lock.unlink(missing_ok=True)


def _end(tree: Path, alive: TextIO, process: int) -> None:
    if os.getpid() == process:  # not in a child, which inherits this call
        shutil.rmtree(tree, ignore_errors=True)
        tree.with_suffix(".alive").unlink(missing_ok=True)
        alive.close()


def remove_folder(folder: Path) -> None:
    """Remove a folder; first out of sight, so that it is never half there."""
    aside = folder.with_name(f".{folder.name}.gone.tmp")
    with suppress(FileNotFoundError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
