"""The contents of a store far away: fetched when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from everclip.errors import CheckpointError
from everclip.store.objects import Objects
from everclip.store.remote.commits import File
from everclip.store.remote.working_copy import OBJECTS, WorkingCopy


class RemoteObjects(Objects):
    """The contents of a working copy.

    Args:
        copy: the working copy.
    """

    def __init__(self, copy: WorkingCopy) -> None:
        super().__init__(copy.tree / OBJECTS)
        self._copy = copy

    def get(self, name: str) -> bytes:
        """Return a content; see `Objects.get`.

        Raises:
            CheckpointError: if it is missing or damaged.
            RunFolderError: if the server does not answer, or refuses.
        """
        if not self.path(name).is_file() and self._key(name) in self._far():
            self._copy.fetch([self._key(name)])
        try:
            return super().get(name)
        except CheckpointError:
            if not self._copy.fetch_again(self._key(name), name):
                raise
            return super().get(name)  # only the one on this machine was damaged

    def need(self, names: Iterable[str]) -> None:
        """Fetch contents; damaged ones are left for `get` to name."""
        self._copy.fetch([self._key(name) for name in names], strict=False)

    def names(self) -> Iterator[str]:
        """Yield the names of all contents, here and there."""
        far = (path.rpartition("/")[2] for path in self._far() if path.startswith(OBJECTS))
        yield from sorted({*super().names(), *far} - {path.rpartition("/")[2] for path in self._copy.dropped})

    def remove(self, name: str) -> int:
        """Remove a content, when the change is published; return its size in bytes."""
        file = self._far().get(self._key(name))
        if file is not None:
            self._copy.dropped.add(self._key(name))
        return super().remove(name) if self.path(name).is_file() else (0 if file is None else file.size)

    def _key(self, name: str) -> str:
        return f"{OBJECTS}{name[:2]}/{name}"

    def _far(self) -> dict[str, File]:
        return {} if self._copy.commit is None else self._copy.commit.files
