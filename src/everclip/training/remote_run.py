"""A run folder far away (`output=s3://bucket/runs/shop`): the run works in a copy on this machine, and publishes it.

    URL/...                             the files of the run folder, under their own names
    URL/.everclip/lease/000000001.json  who runs it
    URL/.everclip/state.json            a token, which every publication changes before and after it writes files
    CACHE/runs/1f2e.../shop/            the copy
    CACHE/runs/1f2e.../shop/.copy.json  the token that the copy agrees with, and its files as they were then

Files are written in an order that makes a publication harmless wherever it ends: first what a checkpoint needs, then
the checkpoint with its manifest last, then the pages; then, files that are gone are removed; the result is the last.

If a process ends without a last publication, its copy is newer than the URL. It is used again if nobody has published
since; else the copy is made anew.

A copy may lose files while a run works in it: someone tidies the cache. What a run never removes is not removed at the
URL either; the run stops.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath

from everclip.errors import ConfigError, EverclipError, RunFolderError
from everclip.files import crash_point, disk_errors, write_text_atomic
from everclip.lock import is_locked, locked
from everclip.remote.files import Say, open_files
from everclip.remote.lease import Lease, LeaseLostError, Subject, leased
from everclip.remote.scanning import Stamp, stamp_of
from everclip.training.checkpoint import MANIFEST
from everclip.training.run_files import (
    CHECKPOINT,
    LOCAL,
    NOTE,
    in_order,
    is_leftover,
    is_manifest,
    kept,
    mirrored,
    newest,
)
from everclip.training.run_folder import CONFIG, LOCK
from everclip.urls import copy_of_run

OWN = ".everclip/"
"""What lies below it at the URL is no file of the run."""

LEASE = Subject(f"{OWN}lease", "run", "Wait for it, or stop it", patient=True)

_STATE = f"{OWN}state.json"
_AT_ONCE = 8
_READS = 3  # a state that is published while it is fetched would be a mixture of two


class CopyLostError(RunFolderError):
    """Someone removed files of the copy while a run worked in it."""


_FINAL = (LeaseLostError, CopyLostError)
"""Errors after which nothing may be published."""


@dataclass
class _Note:
    """What a copy remembers.

    Attributes:
        tokens: of the state far away that it agrees with; "" before the first one. Several while it is not known
            whether the server got the newest.
        ahead: whether it may hold more than that state.
        files: path -> stamp, as they were when they agreed.
    """

    tokens: list[str] = field(default_factory=lambda: [""])
    ahead: bool = False
    files: dict[str, Stamp] = field(default_factory=dict)


class RunCopy:
    """The copy of a run folder far away.

    Args:
        url: of the run folder.
        say: called with lines for the user.
        where: the argument or setting that holds the URL, for people.

    Attributes:
        folder: the copy.

    Raises:
        ConfigError: if the URL holds a key, or its back end is not installed.
    """

    def __init__(self, url: str, say: Say = lambda line: None, where: str = "output") -> None:
        self.url, self.folder, self._say = url, copy_of_run(url), say
        self._files = open_files(url, say, "run folder", where)
        self._note_file = self.folder / NOTE
        self._lease: Lease | None = None
        self._note = _Note()
        self._far: dict[str, int] = {}
        self._left: set[str] = set()
        self._problem: str | None = None

    # -- reading ----------------------------------------------------------------------------------------------

    def refresh(self, published: bool = False) -> None:
        """Bring the copy to the state far away, unless a process of this machine works in it or it is newer.

        Args:
            published: do so also if it is newer.

        Raises:
            ConfigError: if the URL holds something else than a run.
            RunFolderError: if the server does not answer, or refuses; or a file cannot be written.
        """
        with self._alone():
            if not is_locked(self.folder / LOCK):
                self._bring_up(published)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time change the copy from outside."""
        parent = self.folder.parent
        with disk_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
        with locked(parent / ".lock", "fetch", wait=True, say=self._say, what="copy"):
            yield

    def _bring_up(self, published: bool = False) -> None:
        for _ in range(_READS):
            token = self._token()
            if not self._bring_to(token, published) or self._token() == token:
                return

    def _bring_to(self, token: str, published: bool) -> bool:
        """Bring the copy to the state of a token; return whether it was changed."""
        self._note = self._read_note()
        self._far = self._listed(token)
        here = mirrored(self.folder)
        agrees = token in self._note.tokens
        # If someone removed its checkpoints, or other files, a copy is not newer whatever it remembers.
        whole = newest(self._far) <= newest(here) and kept(self._far) <= here.keys()
        if self._note.ahead and agrees and whole and not published:
            return False
        same = set[str]()
        if token and agrees:  # without one, what lies there was put there by other means
            known = self._note.files
            same = {
                p
                for p, size in self._far.items()
                if p in here and here[p] == known.get(p) and here[p][2] == size
            }
            if self._far.keys() <= same and here.keys() <= same:
                return False
        self._note_file.unlink(missing_ok=True)  # until everything is there, the copy agrees with nothing
        same |= self._same_checkpoints(here)
        for path in here.keys() - self._far.keys():
            (self.folder / path).unlink(missing_ok=True)
        self._fetch(sorted(self._far.keys() - same))
        files = {path: stamp for path, stamp in mirrored(self.folder).items() if path in self._far}
        self._note = _Note([token], False, files)
        self._write_note()
        return True

    def _same_checkpoints(self, here: dict[str, Stamp]) -> set[str]:
        """Return the files of checkpoints that need not be fetched again: a manifest has the checksums of the rest."""
        same = set[str]()
        for manifest in filter(is_manifest, self._far):
            start = manifest.removesuffix(MANIFEST)
            files = {path for path in self._far if path.startswith(start)}
            if all(path in here and here[path][2] == self._far[path] for path in files):
                with suppress(FileNotFoundError):
                    if self._files.read(manifest) == (self.folder / manifest).read_bytes():
                        same |= files
        return same

    def _fetch(self, paths: Iterable[str]) -> None:
        def one(path: str) -> None:
            target = self.folder / path
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            try:
                self._files.download(path, temporary)
                if temporary.stat().st_size != self._far[path]:
                    self._files.download(
                        path, temporary
                    )  # a connection that was cut may give less without an error
                found = temporary.stat().st_size
                if found != self._far[path]:
                    raise RunFolderError(
                        f"{self._files.place(path)}: {found} bytes arrived of {self._far[path]}. Repeat the command."
                    )
                os.replace(temporary, target)
            except FileNotFoundError:
                return  # a run that works there has removed it just now, as an old checkpoint
            finally:
                temporary.unlink(missing_ok=True)
            crash_point("in remote run: fetched")

        _each(one, paths)

    def _listed(self, token: str) -> dict[str, int]:
        """Return path -> bytes of the run's files far away, without those that were not written to their end.

        Raises:
            ConfigError: if the URL holds something else than a run, such as a folder of runs.
            RunFolderError: if a path leads out of the folder.
        """
        found = {
            path: size
            for path, size in self._files.sizes().items()
            if path and not path.endswith("/") and not path.startswith((OWN, *LOCAL))
        }
        if found and not token and CONFIG not in found:
            raise ConfigError(
                f"{self.url}: holds files, but no run (there is no {CONFIG}, but {min(found)}). Give the URL of a run "
                "folder, or of a place where nothing is."
            )
        whole = {}
        for path, size in found.items():
            if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute() or "\\" in path:
                raise RunFolderError(
                    f"{self._files.place(path)}: the path leads out of the run folder. Remove this file."
                )
            start = CHECKPOINT.match(path)
            if not is_leftover(path) and (start is None or start[0] + MANIFEST in found):
                whole[path] = size
        # Without a token, a checkpoint without a manifest may be one that someone is just copying there.
        self._left = {path for path in found.keys() - whole.keys() if token or is_leftover(path)}
        return whole

    def _token(self) -> str:
        try:
            state = json.loads(self._files.read(_STATE))
            return str(state["token"])
        except FileNotFoundError:
            return ""
        except (ValueError, KeyError, TypeError):
            return "damaged"  # agrees with no copy

    def _read_note(self) -> _Note:
        try:
            found = json.loads(self._note_file.read_text(encoding="utf-8"))
            files = {str(path): tuple(int(n) for n in stamp) for path, stamp in found["files"].items()}
            return _Note([str(t) for t in found["tokens"]], bool(found["ahead"]), files)  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return _Note([])  # agrees with no state

    def _write_note(self) -> None:
        write_text_atomic(self._note_file, json.dumps(asdict(self._note)))

    # -- changing ---------------------------------------------------------------------------------------------

    @contextmanager
    def changing(self, verb: str) -> Iterator[None]:
        """Hold the lease while the copy is changed, and publish it at the end, also if the work fails.

        Args:
            verb: what is done, for others.

        Raises:
            ConfigError: if the URL holds something else than a run.
            RunFolderError: if another process holds the lease, has taken over, or the server does not answer; or if
                someone removed files of the copy.
        """
        with leased(self._files, LEASE, verb, say=self._say) as self._lease:
            with self._alone():
                if is_locked(self.folder / LOCK):
                    raise RunFolderError(
                        f"{self.url}: another process uses its copy {self.folder}. Wait for it, or stop it."
                    )
                self._bring_up()
                if self._note.ahead:
                    self._say(f"{self.folder} is newer than {self.url}: continued from it")
                self._note.ahead = True
                self._write_note()
            try:
                yield
            except _FINAL:
                raise
            except Exception:
                try:
                    self._publish(last=True)
                except EverclipError as problem:  # the error of the work counts more
                    self._say(f"note: not published: {problem}")
                raise
            try:
                self._publish(last=True)
            except _FINAL:
                raise
            except EverclipError as error:
                raise RunFolderError(
                    f"{error} The run is whole in {self.folder} on this machine; the same command on this machine "
                    "publishes it."
                ) from error

    def publish(self) -> str | None:
        """Write what has changed to the URL. If the server does not answer, the work can go on.

        Returns:
            Why nothing was published, if the last call could; else `None`.

        Raises:
            LeaseLostError: if another process has taken over.
            CopyLostError: if someone removed files of the copy.
        """
        try:
            self._publish()
        except _FINAL:
            raise
        except EverclipError as error:
            first, self._problem = self._problem is None, str(error)
            return self._problem if first else None
        self._problem = None
        return None

    def _publish(self, last: bool = False) -> None:
        assert self._lease is not None
        self._lease.require()
        here = mirrored(self.folder)
        if lost := kept(self._far) - here.keys():
            raise CopyLostError(
                f"{self.folder}: {min(lost)} is gone: someone removed it while a process worked there. Nothing was "
                f"published; repeat the command: it goes on from what {self.url} holds."
            )
        fresh = [p for p, stamp in here.items() if self._note.files.get(p) != stamp or p not in self._far]
        gone = sorted({*self._far, *self._left} - here.keys())
        if fresh or gone:
            self._change_token()
            *first, outcome = in_order(fresh)
            for group in first:
                self._upload_all(group)
            self._lease.require()  # another process could not get back what is removed
            self._files.remove(gone)
            for path in gone:
                self._far.pop(path, None)
            self._left.clear()
            self._upload_all(outcome)
            self._change_token()
            crash_point("in remote run: published")
        self._note.files = {p: stamp for p, stamp in here.items() if p in self._far}
        self._note.ahead = not last
        self._write_note()

    def _change_token(self) -> None:
        """Change the token: no other copy may take itself for newer, or for the same."""
        token = uuid.uuid4().hex
        self._note.tokens.append(token)  # the server may get it although it does not answer
        self._write_note()
        self._files.write(_STATE, json.dumps({"format": 1, "token": token}).encode())
        self._note.tokens = [token]

    def _upload_all(self, paths: Sequence[str]) -> None:
        assert self._lease is not None
        if paths:
            self._lease.require()  # a machine that slept may wake up here
            _each(self._upload, paths)

    def _upload(self, path: str) -> None:
        source = self.folder / path
        try:
            size = stamp_of(source)[2]
            self._files.upload(source, path)
        except FileNotFoundError:
            return  # as a tracker's temporary file
        self._far[path] = size
        crash_point("in remote run: uploaded")


def _each(act: Callable[[str], None], paths: Iterable[str]) -> None:
    """Call `act` for each path, several at a time."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="everclip-run") as pool:
        for _ in pool.map(act, paths):
            pass
