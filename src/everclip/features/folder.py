"""The folders of features outside memory: one that runs share, and the run's own."""

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
        shared: folder whose files remain after the run and serve other runs (`evaluation.cache`); `None` without.
        limit: largest size of the shared folder in bytes; the least recently used files are removed first.
        own: folder of the run for features that do not fit in memory; `None` = a temporary folder.
        say: called with notes for the user.
    """

    def __init__(self) -> None:
        self.shared: Path | None = None
        self.limit: int | None = None
        self.own: Path | None = None
        self.say: Callable[[str], None] = lambda message: None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._noted_unwritable = False

    def keep_in(self, own: Path | None, settings: EvaluationConfig, say: Callable[[str], None]) -> None:
        """Set the folder for features that do not fit in memory, and the shared folder if the settings name one.

        Args:
            own: folder of the run; its files are removed after the task.
            settings: `cache` names the shared folder, `cache_gib` limits its size.
            say: called with notes for the user.
        """
        self.own, self.say = own, say
        self.shared = None if settings.cache is None else Path(settings.cache)
        self.limit = int(settings.cache_gib * 2**30)

    @staticmethod
    def file_of(side: str, name: str, inputs: str, block: int, key: str) -> str:
        """Return the name of the file for the features of some inputs by an encoder."""
        return f"{PREFIX}{side}-{key_of(side, name, inputs, block, key):032x}{ENDING}"

    def shared_file(self, name: str) -> Path | None:
        """Return the path of a file in the shared folder; `None` if there is no such folder."""
        return None if self.shared is None else self.shared / name

    def open_shared(self, path: Path, shapes: Shapes, together: bool) -> InFile | None:
        """Return the writer of a file in the shared folder; `None`, with a single note, if it cannot be written."""
        problem, file = "", None
        if not together or is_first():
            try:
                file = InFile(path, shapes, together)
            except CheckpointError as error:
                problem = str(error.__cause__ or error)
        problem = from_first(problem) if together else problem
        if problem:
            self._note_unwritable(path, problem)
            return None
        return file or InFile(path, shapes, together)

    def _note_unwritable(self, path: Path, problem: str) -> None:
        if path.parent == self.shared and not self._noted_unwritable:
            self.say(f"{path.parent}: embeddings are not stored for other runs ({problem})")
            self._noted_unwritable = True

    def own_file(self, name: str, together: bool) -> Path:
        """Return the path of a file in the run's own folder."""
        if self.own is not None:
            return self.own / name
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="everclip-features-")
        # The first process writes and all read, so all must use its folder.
        return Path(from_first(self._temporary.name) if together else self._temporary.name) / name

    def stored(self, path: Path, count: int, together: bool) -> Features | None:
        """Return the features of a file, memory-mapped; `None` if it is missing or damaged."""
        features = load_mapped(path, count, together)
        if features is not None:
            _touch(path)
        elif path.is_file() and (not together or is_first()):
            self.say(f"{path} is damaged; its embeddings are encoded again")
        return features

    def after_write(self, path: Path, problem: str = "") -> None:
        """Keep the shared folder below its limit after a write to `path`, or note the problem of the write."""
        if problem:
            self._note_unwritable(path, problem)
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
        for _, size, file in sorted(files, key=lambda entry: entry[0]):
            if total <= self.limit:
                break
            if file != path:
                # Processes that have mapped the file keep its pages.
                file.unlink(missing_ok=True)
                total -= size

    def clear(self, keep: Collection[str]) -> None:
        """Remove the run's own files, except those in `keep`."""
        if self._temporary is not None:
            place = Path(self._temporary.name)
            if not any((place / name).is_file() for name in keep):
                self._temporary.cleanup()
                self._temporary = None
        if is_first() and self.own is not None and self.own.is_dir():
            for file in self.own.glob(f"{PREFIX}*{ENDING}"):
                if file.name not in keep:
                    file.unlink(missing_ok=True)
            clear_leftovers(self.own)


def _clear_stale(folder: Path) -> None:
    """Remove old temporary files of killed runs; other runs may be writing newer ones."""
    for left in folder.glob(f".{PREFIX}*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink(missing_ok=True)


def _touch(path: Path) -> None:
    """Mark a file as used now."""
    try:
        os.utime(path)
    except OSError:
        return  # a read-only folder: nothing is removed there, so the time of use does not matter
