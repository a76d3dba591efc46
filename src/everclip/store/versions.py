"""A store: versions of a deployed model, a pointer to the one that serves, and a journal.

    STORE/
      store.json                 settings
      base/                      the first model in open_clip's layout: the store needs no file outside itself
      probes/NAME.parquet        what the model must keep: bounded, never trained on
      versions/v0002/            version.json, learner/ (settings, samples of earlier tasks), held_out.parquet, pages
      objects/ab/abcdef...       tensors, shared by versions
      current                    the version that serves, and those before it
      journal.sqlite             who did what

Every change is one rename: a process that is killed leaves the store as it was before, or as it is after. A store far
away (`everclip.store.remote`) is changed in a working copy, and published in one commit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from everclip.data.table import Table
from everclip.errors import CheckpointError, ConfigError, RunFolderError
from everclip.files import (
    clear_leftovers,
    crash_point,
    file_digest,
    require_writable,
    write_text_atomic,
)
from everclip.learner.core import Learner
from everclip.learner.saved import assembled
from everclip.lock import locked
from everclip.sealing import read_sealed
from everclip.store.journal import DONE, FAILED, DiskFullError, Journal
from everclip.store.objects import Objects
from everclip.store.paths import (
    BASE,
    CURRENT,
    HELD_OUT,
    JOURNAL,
    LEARNER,
    LOCK,
    MANIFEST,
    OBJECTS,
    PROBES,
    SETTINGS,
    VERSIONS,
)
from everclip.store.records import Current, Settings, Version
from everclip.store.writing import write_version
from everclip.training.run_folder import CONFIG

if TYPE_CHECKING:
    from everclip.store.remote.working_copy import WorkingCopy

_ID = re.compile(r"v\d{4,}")


class Store:
    """The store in a folder.

    Args:
        path: the folder.
        say: called with lines for the user.
        copy: of a store far away, if `path` is its working copy; see `everclip.store.opening.open_store`.
        objects: the contents; default: those in the folder.

    Raises:
        ConfigError: if it is no store.
    """

    def __init__(
        self,
        path: Path,
        say: Callable[[str], None] = lambda line: None,
        copy: WorkingCopy | None = None,
        objects: Objects | None = None,
    ) -> None:
        self.path, self.say, self.copy = path, say, copy
        if not (path / SETTINGS).is_file():
            raise ConfigError(
                f"{path}: is no store (there is no {SETTINGS}); `everclip init {path} --model MODEL` makes one."
            )
        self.settings = read_sealed(path / SETTINGS, Settings)
        self.objects = Objects(path / OBJECTS) if objects is None else objects
        self.journal = Journal(path / JOURNAL)

    @property
    def place(self) -> str:
        """The folder or URL, as users write it."""
        return str(self.path) if self.copy is None else self.copy.url

    @property
    def title(self) -> str:
        """The last part of folder or URL."""
        return self.path.resolve().name if self.copy is None else self.copy.url.rpartition("/")[2]

    def refresh(self) -> None:
        """Follow a store far away to its newest state; a folder needs no such step.

        Raises:
            CheckpointError: if it is damaged.
            RunFolderError: if the server does not answer, or refuses.
        """
        if self.copy is not None:
            self.copy.refresh()

    # -- reading ----------------------------------------------------------------------------------------------

    @property
    def current(self) -> Current:
        """The version that serves, and those before it.

        Raises:
            CheckpointError: if the file that says so is damaged.
        """
        try:
            return read_sealed(self.path / CURRENT, Current)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} `everclip promote {self.place} VERSION` writes it anew."
            ) from error

    def ids(self) -> list[str]:
        """Return the ids of all versions, oldest first."""
        return sorted(
            (p.name for p in (self.path / VERSIONS).iterdir() if _ID.fullmatch(p.name)),
            key=lambda i: int(i[1:]),
        )

    def folder(self, version: str) -> Path:
        """Return the folder of a version.

        Raises:
            ConfigError: if there is none of this id.
        """
        path = self.path / VERSIONS / version
        if not _ID.fullmatch(version) or not path.is_dir():
            raise ConfigError(
                f"{self.place}: there is no version {version!r}; there are {', '.join(self.ids())}."
            )
        return path

    def place_of(self, version: str, name: str) -> str:
        """Return the path or URL of a file of a version."""
        return self._named(self.folder(version) / name)

    def _named(self, path: Path) -> str:
        """Return the path or URL of a file of the store."""
        return str(path) if self.copy is None else self.copy.place_of(path.relative_to(self.path).as_posix())

    def version(self, version: str) -> Version:
        """Return what is written of a version.

        Raises:
            ConfigError: if there is none of this id.
            CheckpointError: if its manifest is damaged.
        """
        return read_sealed(self.folder(version) / MANIFEST, Version)

    def load(self, version: str | None = None, changed: Mapping[str, Any] | None = None) -> Learner:
        """Load a version; default: the current one.

        Args:
            version: its id.
            changed: parts of its settings (`method`, `training`) that replace those it was written with.

        Raises:
            CheckpointError: if a tensor or file is missing or damaged; names it.
        """
        of = self.version(version or self.current.version)
        self.check(of)
        folder = self.folder(of.id) / LEARNER
        document = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) | dict(changed or {})
        # Wherever the store lies now.
        document["backbone"] = {**document["backbone"], "name": str((self.path / BASE).absolute())}
        state = json.loads(self.objects.get(of.learner))
        return assembled(Learner, folder, document, self.objects.get_tensors(of.tensors), state)

    def check(self, version: Version) -> None:
        """Check the files of a version that are no tensors, and the first model, which every version needs.

        Raises:
            CheckpointError: if one is missing or damaged.
        """
        if self.copy is not None:
            self.copy.fetch_folder(BASE)
        self._check_own(BASE)
        folder = self.folder(version.id)
        for name, expected in version.files.items():
            path = folder / name
            if not self._is_intact(path, expected):
                raise CheckpointError(
                    f"{self._named(path)}: {'damaged' if path.is_file() else 'missing'}: version {version.id} cannot "
                    f"be used. Serve another one: `everclip promote {self.place} VERSION`."
                )

    def _check_own(self, part: str) -> None:
        for name, expected in self.settings.files.items():
            path = self.path / name
            if (name == part or name.startswith(f"{part}/")) and not self._is_intact(path, expected):
                raise CheckpointError(
                    f"{self._named(path)}: {'damaged' if path.is_file() else 'missing'}. Every version of the store "
                    "needs it: put it back as it was."
                )

    def _is_intact(self, path: Path, expected: str) -> bool:
        """Whether a file has its content; of a store far away, after it was fetched again if need be."""
        if path.is_file() and file_digest(path) == expected:
            return True
        return self.copy is not None and self.copy.fetch_again(
            path.relative_to(self.path).as_posix(), expected
        )

    def problems(self, version: str) -> list[str]:
        """Return what is wrong with a version; empty if everything has the content that it was written with."""
        try:
            of = self.version(version)
            self.check(of)
            self.objects.get(of.learner)
        except CheckpointError as error:
            return [str(error)]
        found = []
        self.objects.need(of.tensors.values())
        for name in dict.fromkeys(of.tensors.values()):
            try:
                self.objects.get(name)
            except CheckpointError as error:
                found.append(str(error))
        return found

    def held_out(self, version: str) -> Table | None:
        """Return the rows of a version's data that were only measured; `None` if it has none."""
        path = self.folder(version) / HELD_OUT
        return Table(_rows(path), name=version) if path.is_file() else None

    def probe(self, name: str) -> Table:
        """Return a probe suite.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        self._check_own(f"{PROBES}/{name}.parquet")
        return Table(_rows(self.path / PROBES / f"{name}.parquet"), name=name)

    def ancestors(self, version: str) -> list[str]:
        """Return a version and those it was learned from, newest first; ends where one was pruned."""
        found: list[str] = []
        at: str | None = version
        while at is not None and (self.path / VERSIONS / at).is_dir():
            found.append(at)
            at = self.version(at).parent
        return found

    # -- changing ---------------------------------------------------------------------------------------------

    @contextmanager
    def changing(self, verb: str, wait: bool = False, detail: str = "") -> Iterator[Action]:
        """Hold the lock, clear what killed processes left, and write begin and end of an action into the journal.

        Of a store far away, the change is published at the end; if the work fails, only the journal is.

        Raises:
            RunFolderError: if another process holds the lock.
        """
        if self.copy is None:
            with self._changing(verb, wait, detail) as action:
                yield action
            return
        whole = verb == "prune"  # which removes what the search index does not need
        with self.copy.changing("model", verb, wait, whole=whole, on_error=(JOURNAL,)) as left:
            if left is not None:
                self.say(
                    f"note: `{left.verb}` of {left.since} was interrupted; the store is as it was before it"
                )
                self.journal.add_interrupted(left.verb, left.since, left.host, left.process)
            with self._changing(verb, wait, detail) as action:
                yield action

    @contextmanager
    def changing_index(self, verb: str) -> Iterator[None]:
        """Hold the lease of the search index of a store far away, and publish what is done; in a folder, do nothing.

        Raises:
            RunFolderError: if another process changes the index.
        """
        with ExitStack() as stack:
            if self.copy is not None:
                stack.enter_context(self.copy.changing("index", verb))
            yield

    def publish_now_and_then(self) -> None:
        """Publish a long change of the search index of a store far away so far, if the last time is long ago."""
        if self.copy is not None:
            self.copy.publish_now_and_then()

    @contextmanager
    def _changing(self, verb: str, wait: bool, detail: str) -> Iterator[Action]:
        require_writable(self.path, "STORE", RunFolderError)
        with locked(self.path / LOCK, verb, wait, self.say):
            for left in self.journal.mark_interrupted():
                self.say(
                    f"note: `{left.verb}` of {left.at} was interrupted; the store is as it was before it"
                )
            self._clear()
            action = Action(self._begun(verb, detail))
            crash_point("in store: begun")
            try:
                yield action
            except BaseException as error:
                with suppress(DiskFullError):  # the first error says it
                    self._end(action, verb, FAILED, f"{type(error).__name__}: {error}"[:500])
                raise
            self._end(action, verb, DONE, action.detail or detail)

    def _begun(self, verb: str, detail: str) -> int | None:
        """Begin an action in the journal; on a full disk `prune` makes room first, and is written down at its end."""
        try:
            return self.journal.begin(verb, detail=detail)
        except DiskFullError:
            if verb != "prune":
                raise
            return None

    def _end(self, action: Action, verb: str, outcome: str, detail: str) -> None:
        number = self.journal.begin(verb) if action.number is None else action.number
        self.journal.end(number, outcome, action.version, detail)

    def _clear(self) -> None:
        for folder in (self.path, self.path / VERSIONS, self.path / PROBES):
            clear_leftovers(folder)
        self.objects.clear()

    def next_id(self) -> str:
        """Return the id of the next version."""
        return f"v{max((int(i[1:]) for i in self.ids()), default=0) + 1:04d}"

    def add(
        self,
        learner: Learner,
        version: Version,
        held_out: Table | None,
        pages: Callable[[Path], None] | None = None,
    ) -> Version:
        """Write a version; it does not serve yet.

        Args:
            learner: the model.
            version: what is written of it; `tensors`, `learner` and `files` are filled in here.
            held_out: rows that later updates must not lose.
            pages: called with the folder, to write pages into it.

        Returns:
            The version as it is written.
        """
        return write_version(self.path, learner, version, held_out, pages)

    def point_to(self, version: str) -> Current:
        """Let a version serve, in one rename."""
        try:
            now = self.current
        except CheckpointError as error:  # nothing else can mend it
            self.say(f"note: {error} Which versions served before is not known any more.")
            now = None
        if now is not None and now.version == version:
            return now
        pointer = Current(version=version, before=[] if now is None else [*now.before, now.version])
        write_text_atomic(self.path / CURRENT, pointer.model_dump_json())
        return pointer

    def promote(self, version: str, action: Action) -> Current:
        """Let a version serve.

        Raises:
            CheckpointError: if it is damaged.
        """
        if problems := self.problems(version):
            raise CheckpointError(f"version {version} is not promoted: {problems[0]}")
        of = self.version(version)
        action.version = version
        pointer = self.point_to(version)
        if of.state == "rejected":
            action.detail = "promoted although it was rejected"
        return pointer

    def rollback(self, action: Action) -> Current:
        """Let the version serve that served before the current one.

        Raises:
            ConfigError: if there is none.
            CheckpointError: if it is damaged.
        """
        now = self.current
        before = [version for version in now.before if version in self.ids()]
        if not before:
            raise ConfigError(f"{self.place}: no version served before {now.version}.")
        if problems := self.problems(before[-1]):
            raise CheckpointError(f"cannot go back to {before[-1]}: {problems[0]}")
        pointer = Current(version=before[-1], before=before[:-1])
        write_text_atomic(self.path / CURRENT, pointer.model_dump_json())
        action.version, action.detail = before[-1], f"from {now.version}"
        return pointer


@dataclass
class Action:
    """An action in the journal."""

    number: int | None
    version: str | None = None
    detail: str = ""


def _rows(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({str(error).splitlines()[0]}).") from error
