"""A run folder far away (`output=s3://bucket/runs/shop`): the run works in a copy on this machine, and publishes it.

    URL/...                             the files of the run folder, under their own names
    URL/.everclip/lease/000000001.json  who runs it
    URL/.everclip/state.json            a token, which every publication changes before and after it writes files
    CACHE/runs/1f2e.../shop/            the copy
    CACHE/runs/1f2e.../shop/.copy.json  the token that the copy agrees with, and its files as they were then

Files are written in an order that makes a publication harmless wherever it ends: first what a checkpoint needs, then
the checkpoint with its manifest last, then the result and its pages; only then, files that are gone are removed.

If a process ends without a last publication, its copy is newer than the URL. It is used again if nobody has published
since; else the copy is made anew.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from everclip.errors import EverclipError, RunFolderError
from everclip.evaluation.results import FILE as RESULTS
from everclip.files import crash_point, disk_errors, write_text_atomic
from everclip.lock import is_locked, locked
from everclip.remote.files import Say, open_files
from everclip.remote.lease import Lease, LeaseLostError, Subject, leased
from everclip.remote.scanning import Stamp, scan, stamp_of
from everclip.training.checkpoint import MANIFEST
from everclip.training.run_folder import LOCK
from everclip.urls import copy_of_run

OWN = ".everclip/"
"""What lies below it at the URL is no file of the run."""

LEASE = Subject(f"{OWN}lease", "run", "Wait for it, or stop it", patient=True)

_STATE = f"{OWN}state.json"
_NOTE = ".copy.json"
_LOCAL = ("features/", _NOTE)
"""Files that only this machine needs: features that do not fit in memory are removed after a task."""

_AT_ONCE = 8
_CHECKPOINT = re.compile(r"checkpoints/\d{8}/")
_OUTCOME = re.compile(rf"{re.escape(RESULTS)}|[^/]+\.html|diagnosis[^/]*|figures/.*")


@dataclass
class _Note:
    """What a copy remembers.

    Attributes:
        token: of the state far away that it agrees with; "" before the first one.
        ahead: whether it may hold more than that state.
        files: path -> stamp, as they were when they agreed.
    """

    token: str = ""
    ahead: bool = False
    files: dict[str, Stamp] = field(default_factory=dict)


class RunCopy:
    """The copy of a run folder far away.

    Args:
        url: of the run folder.
        say: called with lines for the user.

    Attributes:
        folder: the copy.

    Raises:
        ConfigError: if the URL holds a key, or its back end is not installed.
    """

    def __init__(self, url: str, say: Say = lambda line: None) -> None:
        self.url, self.folder, self._say = url, copy_of_run(url), say
        self._files = open_files(url, say, "run folder", "output")
        self._note_file = self.folder / _NOTE
        self._lease: Lease | None = None
        self._note = _Note()
        self._far: dict[str, int] = {}
        self._problem: str | None = None

    # -- reading ----------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the copy to the state far away, unless a process of this machine works in it or it is newer.

        Raises:
            RunFolderError: if the server does not answer, or refuses; or a file cannot be written.
        """
        with self._alone():
            if not is_locked(self.folder / LOCK):
                self._bring_up()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time change the copy from outside."""
        parent = self.folder.parent
        with disk_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
        with locked(parent / ".lock", "fetch", wait=True, say=self._say, what="copy"):
            yield

    def _bring_up(self) -> None:
        token = self._token()
        self._note = self._read_note()
        self._far = self._listed()
        here = _mirrored(self.folder)
        # Without its checkpoints, which someone may have removed, a copy is not newer whatever it remembers.
        if self._note.ahead and self._note.token == token and _newest(self._far) <= _newest(here):
            return
        same = set[str]()
        if token and self._note.token == token:  # without one, what lies there was put there by other means
            known = self._note.files
            same = {
                p
                for p, size in self._far.items()
                if p in here and here[p] == known.get(p) and here[p][2] == size
            }
            if self._far.keys() <= same and here.keys() <= same:
                return
        self._note_file.unlink(missing_ok=True)  # until everything is there, the copy agrees with nothing
        same |= self._same_checkpoints(here)
        for path in here.keys() - self._far.keys():
            (self.folder / path).unlink(missing_ok=True)
        self._fetch(sorted(self._far.keys() - same))
        self._note = _Note(
            token, False, {path: stamp for path, stamp in _mirrored(self.folder).items() if path in self._far}
        )
        self._write_note()

    def _same_checkpoints(self, here: dict[str, Stamp]) -> set[str]:
        """Return the files of checkpoints that need not be fetched again: a manifest has the checksums of the rest."""
        same = set[str]()
        for manifest in (
            path for path in self._far if _CHECKPOINT.match(path) and path.endswith(f"/{MANIFEST}")
        ):
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

    def _listed(self) -> dict[str, int]:
        """Return path -> bytes of the run's files far away, without checkpoints that were not written to their end.

        Raises:
            RunFolderError: if a path leads out of the folder.
        """
        found = {path: size for path, size in self._files.sizes().items() if path and not path.endswith("/")}
        kept = {}
        for path, size in found.items():
            if path.startswith((OWN, *_LOCAL)):
                continue
            if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute() or "\\" in path:
                raise RunFolderError(
                    f"{self._files.place(path)}: the path leads out of the run folder. Remove this file."
                )
            start = _CHECKPOINT.match(path)
            if start is None or start[0] + MANIFEST in found:
                kept[path] = size
        return kept

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
            return _Note(str(found["token"]), bool(found["ahead"]), files)  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return _Note("none")  # agrees with no state

    def _write_note(self) -> None:
        write_text_atomic(self._note_file, json.dumps(asdict(self._note)))

    # -- changing ---------------------------------------------------------------------------------------------

    @contextmanager
    def changing(self, verb: str) -> Iterator[None]:
        """Hold the lease while the copy is changed, and publish it at the end, also if the work fails.

        Args:
            verb: what is done, for others.

        Raises:
            RunFolderError: if another process holds the lease, has taken over, or the server does not answer.
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
            except LeaseLostError:
                raise
            except Exception:
                with suppress(EverclipError):  # the error of the work counts more
                    self._publish(last=True)
                raise
            try:
                self._publish(last=True)
            except LeaseLostError:
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
        """
        try:
            self._publish()
        except LeaseLostError:
            raise
        except EverclipError as error:
            first, self._problem = self._problem is None, str(error)
            return self._problem if first else None
        self._problem = None
        return None

    def _publish(self, last: bool = False) -> None:
        assert self._lease is not None
        self._lease.require()
        here = _mirrored(self.folder)
        fresh = [p for p, stamp in here.items() if self._note.files.get(p) != stamp or p not in self._far]
        gone = sorted(self._far.keys() - here.keys())
        if fresh or gone:
            self._begin_state()
            for group in _in_order(fresh):
                _each(self._upload, group)
            self._files.remove(gone)
            for path in gone:
                self._far.pop(path)
            crash_point("in remote run: published")
        self._note.files = {p: stamp for p, stamp in here.items() if p in self._far}
        self._note.ahead = not last
        self._write_note()

    def _begin_state(self) -> None:
        """Change the token, so that no other copy takes itself for newer than what is written now."""
        token = uuid.uuid4().hex
        self._note.token = token
        self._write_note()
        self._files.write(_STATE, json.dumps({"format": 1, "token": token}).encode())

    def _upload(self, path: str) -> None:
        source = self.folder / path
        try:
            size = stamp_of(source)[2]
            self._files.upload(source, path)
        except FileNotFoundError:
            return  # as a tracker's temporary file
        self._far[path] = size
        crash_point("in remote run: uploaded")


def _mirrored(folder: Path) -> dict[str, Stamp]:
    """Return path -> stamp of the files of a copy that belong to the URL, too."""
    return {path: stamp for path, stamp in scan(folder).items() if not path.startswith(_LOCAL)}


def _newest(paths: Iterable[str]) -> str:
    """Return the name of the newest whole checkpoint among the files of a run; "" if there is none."""
    whole = (path for path in paths if _CHECKPOINT.match(path) and path.endswith(f"/{MANIFEST}"))
    return max(whole, default="")


def _each(act: Callable[[str], None], paths: Iterable[str]) -> None:
    """Call `act` for each path, several at a time."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="everclip-run") as pool:
        for _ in pool.map(act, paths):
            pass


def _in_order(paths: Iterable[str]) -> list[list[str]]:
    groups: list[list[str]] = [[], [], [], []]
    for path in sorted(paths):
        checkpoint = _CHECKPOINT.match(path) is not None
        place = (
            (2 if path.endswith(f"/{MANIFEST}") else 1)
            if checkpoint
            else 3
            if _OUTCOME.fullmatch(path)
            else 0
        )
        groups[place].append(path)
    return [group for group in groups if group]
