"""The commits of a store far away: which files it consists of. The newest one holds; making it is the switch.

    URL/
      commits/000000007.json                    every file of the store: its place, SHA-256 and size; sealed
      data/model-000000006-1f2e3d4c/objects/... the files that a change brought, named by what the change began from
      lease/model/000000012.json                who changes the store

A commit is created only if there is none of its number, so of two processes that began from the same state one is
refused. Nothing in `data/` is ever replaced: what a killed process left there is in no commit, and a later one
removes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from everclip.errors import CheckpointError
from everclip.remote.files import RemoteFiles
from everclip.remote.lease import Subject
from everclip.sealing import sealed, unsealed
from everclip.search.records import FOLDER as INDEX_FOLDER
from everclip.store.records import Record

COMMITS, DATA, LEASE = "commits", "data", "lease"

Part = Literal["model", "index"]
"""What one process changes at a time: the versions with everything about them, or the search index."""

_NAME = re.compile(r"\d{9}\.json")

PARTS: tuple[Part, ...] = ("model", "index")

LEASES: dict[Part, Subject] = {
    "model": Subject(f"{LEASE}/model", "store"),
    "index": Subject(f"{LEASE}/index", "index of this store"),
}
"""The lease of each part."""

KEPT = 10
"""Commits that stay readable; of older ones only the number stays, so that it is never given again."""


class File(Record):
    """A file of a store.

    Attributes:
        key: where it lies below the URL.
        sha256: of its content.
        size: bytes.
    """

    key: str
    sha256: str
    size: int


class Commit(Record):
    """A state of a store.

    Attributes:
        number: 1, 2...
        at: when it was made.
        verb, host, process: who made it.
        token: unlike that of any other commit.
        changed: part -> the number of the commit that changed it last.
        files: path below the store's folder -> file.
    """

    format: int = 1
    number: int
    at: str
    verb: str
    host: str
    process: int
    token: str
    changed: dict[Part, int]
    files: dict[str, File]


def part_of(path: str) -> Part:
    """Return the part that a file of a store belongs to."""
    return "index" if path.startswith(f"{INDEX_FOLDER}/") else "model"


def key_of(number: int) -> str:
    """Return where a commit lies."""
    return f"{COMMITS}/{number:09d}.json"


@dataclass(frozen=True)
class Commits:
    """The commits of a store."""

    files: RemoteFiles

    def newest(self, known: Commit | None = None) -> Commit | None:
        """Return the commit that holds; `None` if there is no store.

        Args:
            known: a commit that is at hand; if it still holds, only the next number is asked for.

        Raises:
            CheckpointError: if it is damaged.
            RunFolderError: if the server does not answer.
        """
        if known is not None and not self._is_there(known.number + 1):
            return known
        for _ in range(3):  # another process may have made several since the list
            names = [name for name in self.files.names(COMMITS) if _NAME.fullmatch(name)]
            if not names:
                return None
            number = int(max(names)[:9])
            if data := self._read(number):
                return self._checked(number, data)
        raise CheckpointError(
            f"{self.files.place(key_of(number))}: damaged: it is empty and the newest, so which files the store "
            "consists of is not known. Put back its content."
        )

    def of(self, number: int) -> Commit | None:
        """Return a commit; `None` if it is too old to be read.

        Raises:
            CheckpointError: if it is damaged.
        """
        data = self._read(number)
        return self._checked(number, data) if data else None

    def _is_there(self, number: int) -> bool:
        return self._read(number) is not None

    def _read(self, number: int) -> bytes | None:
        try:
            return self.files.read(key_of(number))
        except FileNotFoundError:
            return None

    def _checked(self, number: int, data: bytes) -> Commit:
        place = self.files.place(key_of(number))
        try:
            return unsealed(data.decode(errors="replace"), Commit, place)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} It is the newest state of the store; if it cannot be restored, remove this file: the store "
                "is then as it was before that change."
            ) from error

    def add(self, commit: Commit) -> bool:
        """Make a commit; return `False` if there is one of its number."""
        return self.files.create(key_of(commit.number), sealed(commit).encode())

    def forget_before(self, commit: Commit) -> None:
        """Empty the commit that is too old to be read; only its number stays."""
        if commit.number > KEPT:
            self.files.write(key_of(commit.number - KEPT), b"")
