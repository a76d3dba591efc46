"""Where features lie outside of memory: a folder that runs share, and a folder of the run's own."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from everclip.config import EvaluationConfig
from everclip.contracts import Features
from everclip.data.sampling.order import key_of
from everclip.distributed import from_first, is_first
from everclip.errors import CheckpointError
from everclip.features.storage import InFile, Shapes, load_mapped
from everclip.files import clear_leftovers

PREFIX, ENDING = "features-", ".safetensors"
STALE = 24 * 60 * 60
"""Seconds without a change after which nobody is writing a file any more."""


class FeatureFolders:
    """The files of a feature service.

    Attributes:
        shared: folder whose files outlive the run and serve others (`evaluation.cache`), or `None`.
        limit: bytes that the files of the shared folder may take; the least recently used ones go first.
        own: folder of the run for what memory cannot hold; `None` = a temporary one.
        say: is told what a user should know.
    """

    def __init__(self) -> None:
        self.shared: Path | None = None
        self.limit: int | None = None
        self.own: Path | None = None
        self.say: Callable[[str], None] = lambda message: None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._place = Path()
        self._refused = False

    def keep_in(self, own: Path | None, settings: EvaluationConfig, say: Callable[[str], None]) -> None:
        """Keep what memory cannot hold in a run's own folder, and share files with other runs where that is set.

        Args:
            own: folder of the run; its files go with the task.
            settings: `cache` names the shared folder, `cache_gib` bounds it.
            say: is told what a user should know.
        """
        self.own, self.say = own, say
        self.shared = None if settings.cache is None else Path(settings.cache)
        self.limit = int(settings.cache_gib * 2**30)

    @staticmethod
    def file_of(side: str, name: str, inputs: str, block: int, key: str) -> str:
        """Return the name of the file that holds the features of these inputs by this encoder."""
        return f"{PREFIX}{side}-{key_of(side, name, inputs, block, key):032x}{ENDING}"

    def shared_file(self, name: str) -> Path | None:
        """Return where the shared folder has, or takes, a file; `None` if there is no such folder."""
        return None if self.shared is None else self.shared / name

    def open_shared(self, path: Path, shapes: Shapes, together: bool) -> InFile | None:
        """Return what writes a file of the shared folder; `None` if it cannot be written, which is said once."""
        problem, file = "", None
        if not together or is_first():
            try:
                file = InFile(path, shapes, together)
            except CheckpointError as error:
                problem = str(error.__cause__ or error)
        problem = from_first(problem) if together else problem
        if problem:
            self._refuse(path, problem)
            return None
        return file or InFile(path, shapes, together)

    def _refuse(self, path: Path, problem: str) -> None:
        if path.parent == self.shared and not self._refused:
            self.say(f"{path.parent}: embeddings are not kept for other runs ({problem})")
            self._refused = True

    def own_file(self, name: str, together: bool) -> Path:
        """Return where the run's own folder has, or takes, a file."""
        if self.own is not None:
            return self.own / name
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="everclip-features-")
            # The first process writes, all read: each in a folder of its own would find nothing.
            self._place = Path(from_first(self._temporary.name) if together else self._temporary.name)
        return self._place / name

    def stored(self, path: Path, count: int, together: bool) -> Features | None:
        """Return the features of a file, mapped; `None` if it is missing or damaged."""
        found = load_mapped(path, count, together)
        if found is not None:
            _touch(path)
        elif path.is_file() and (not together or is_first()):
            self.say(f"{path} is damaged; its embeddings are encoded again")
        return found

    def written(self, path: Path, problem: str = "") -> None:
        """Keep the shared folder below its limit after `path` was written there, or say why it was not."""
        if problem:
            self._refuse(path, problem)
        if path.parent != self.shared or not is_first():
            return
        _clear_stale(path.parent)
        if self.limit is None:
            return
        files = []
        for file in path.parent.glob(f"{PREFIX}*{ENDING}"):
            try:
                files.append((file.stat().st_mtime, file.stat().st_size, file))
            except OSError:
                continue  # another run removed it
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files, key=lambda found: found[0]):
            if total <= self.limit:
                break
            if file != path:
                # Who has mapped it keeps its pages.
                file.unlink(missing_ok=True)
                total -= size

    def clear(self, keep: Collection[str]) -> None:
        """Remove the run's own files but for those that are still used."""
        if self._temporary is not None and not any((self._place / name).is_file() for name in keep):
            self._temporary.cleanup()
            self._temporary = None
        if is_first() and self.own is not None and self.own.is_dir():
            for file in self.own.glob(f"{PREFIX}*{ENDING}"):
                if file.name not in keep:
                    file.unlink(missing_ok=True)
            clear_leftovers(self.own)


def _clear_stale(folder: Path) -> None:
    """Remove what a killed run left half written in a folder in which others may be writing now."""
    for left in folder.glob(f".{PREFIX}*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink(missing_ok=True)


def _touch(path: Path) -> None:
    """Mark a file as used now."""
    try:
        os.utime(path)
    except OSError:
        return  # a folder that is only read: its order of use is nobody's concern
