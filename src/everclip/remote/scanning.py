"""The files of a folder on this machine that belongs to one far away, and when each was written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from everclip.errors import RunFolderError

Stamp = tuple[int, int, int]
"""Time of the last change in ns, inode, bytes: one of them differs whenever a file was written or replaced."""


def stamp_of(path: Path) -> Stamp:
    """Return what differs whenever a file was written or replaced."""
    found = path.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size


def scan(tree: Path) -> dict[str, Stamp]:
    """Return path below a tree -> stamp of its files; without locks and what is being written.

    Raises:
        RunFolderError: if a folder cannot be read: its files would seem to be gone.
    """
    found = {}
    for folder, folders, names in os.walk(tree, onerror=_raise_unless_gone):
        folders[:] = [name for name in folders if not name.endswith(".tmp")]
        for name in names:
            if not (name.startswith(".") and name.endswith((".tmp", ".lock"))) and name != ".lock":
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # replaced just now
                    found[path.relative_to(tree).as_posix()] = stamp_of(path)
    return found


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise RunFolderError(f"{error.filename}: cannot be read ({error.strerror or error}).") from error
