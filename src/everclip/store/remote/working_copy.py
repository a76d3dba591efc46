"""The working copy of a store far away: follow its commits, fetch what is needed, publish a change in one commit."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from everclip.errors import CheckpointError, ConfigError, EverclipError
from everclip.files import cache_folder
from everclip.remote.files import Say, open_files
from everclip.remote.lease import Holder, Lease, leased
from everclip.remote.scanning import scan, stamp_of
from everclip.search.records import FOLDER as INDEX_FOLDER
from everclip.search.records import SERVING
from everclip.store.remote.commits import COMMITS, DATA, LEASE, LEASES, Commit, Commits, File, Part
from everclip.store.remote.publishing import Publisher
from everclip.store.remote.tree import Contents, Placed, link, new_tree, remove_folder

OBJECTS, BASE, VERSIONS = "objects/", "base/", "versions/"
LAST = ("store.json", "journal.sqlite", f"{INDEX_FOLDER}/{SERVING}", "current")
"""Files that are replaced, in the order in which they are: what they name is there before them."""

_AT_ONCE = 8
_TRIES = 5


class WorkingCopy:
    """A store far away as this process sees it.

    Args:
        url: such as `s3://bucket/shop`.
        say: called with lines for the user.
        tables: whether the tables of the search index are needed.
        cache: the folder of contents and trees; default: in everclip's cache folder.

    Attributes:
        tree: the store's folder on this machine. Contents and the base come when `fetch` asks for them.
        commit: the commit that the tree has; `None` before the first.

    Raises:
        ConfigError: if the URL holds a key, or its back end is not installed.
    """

    def __init__(
        self,
        url: str,
        say: Say = lambda line: None,
        tables: bool = False,
        cache: Path | None = None,
    ) -> None:
        self.files = open_files(url, say)
        self.url, self.say, self._tables = self.files.url, say, tables
        self.commits = Commits(self.files)
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        folder = (cache_folder() if cache is None else cache) / "stores" / name
        self._contents = Contents(folder / "contents")
        self.tree = new_tree(folder / "trees")
        self.commit: Commit | None = None
        self.placed: dict[str, Placed] = {}
        self.dropped: set[str] = set()
        self._dirty = False
        self._publisher: Publisher | None = None
        self._lock = threading.RLock()

    # -- reading ----------------------------------------------------------------------------------------------

    def refresh(self, anew: bool = False) -> None:
        """Bring the tree to the newest commit. If it is there already, one file is asked for that is not there.

        Args:
            anew: read the newest commit again, in case someone removed the one at hand because it was damaged.

        Raises:
            ConfigError: if there is no store.
            CheckpointError: if the newest commit is damaged.
            RunFolderError: if the server does not answer, or refuses.
        """
        with self._lock:
            for left in reversed(range(_TRIES)):
                newest = self.commits.newest(None if anew else self.commit)
                if newest is None:
                    raise ConfigError(
                        f"{self.url}: is no store (there are no {COMMITS}/); `everclip init {self.url} --model MODEL` "
                        "makes one."
                    )
                if self.commit is not None and newest.token == self.commit.token and not self._dirty:
                    return
                try:
                    self._take(newest)
                    return
                except (
                    FileNotFoundError
                ) as error:  # a newer commit needs this file no more, and it was removed
                    self.commit, self._dirty = None, True
                    if left == 0:
                        raise CheckpointError(f"{self.url}: {error} is missing.") from error

    def fetch_folder(self, folder: str) -> None:
        """Fetch the files below a folder of the store; see `fetch`."""
        assert self.commit is not None
        self.fetch([path for path in self.commit.files if path.startswith(f"{folder}/")])

    def fetch(self, paths: Iterable[str], strict: bool = True) -> None:
        """Fetch files of the store that are not here yet, several at a time.

        Args:
            paths: in the store; those that it does not have are left out.
            strict: whether a damaged file is an error; else it is left out.

        Raises:
            CheckpointError: if one is missing or damaged; names it.
            RunFolderError: if the server does not answer, or refuses.
        """
        with self._lock:  # another thread may refresh
            assert self.commit is not None
            files = self.commit.files
            wanted = {
                path: files[path] for path in paths if path in files and not (self.tree / path).is_file()
            }
            try:
                damaged = self._download(wanted)
                for path in damaged:
                    file = wanted.pop(path)
                    if strict:
                        raise CheckpointError(self._damaged(file))
                self._place(wanted, {})
            except FileNotFoundError as error:
                if strict:
                    raise CheckpointError(
                        f"{error}: missing. If it was pruned just now, repeat the command."
                    ) from error

    def fetch_again(self, path: str, sha256: str) -> bool:
        """Fetch a file of the store that is damaged or missing on this machine; return whether it is right now.

        Args:
            path: in the store.
            sha256: of the content that it must have.

        Raises:
            RunFolderError: if the server does not answer, or refuses.
        """
        with self._lock:
            file = None if self.commit is None else self.commit.files.get(path)
            if file is None or file.sha256 != sha256:
                return False
            self._contents.drop(sha256)
            try:
                if self._download({path: file}):
                    return False
                self._place({path: file}, {})
            except FileNotFoundError:
                return False
            return True

    def _damaged(self, file: File) -> str:
        return f"{self.files.place(file.key)}: damaged: its content is not the one it was written with (SHA-256)."

    def place_of(self, path: str) -> str:
        """Return the URL of a file of the store."""
        assert self.commit is not None
        file = self.commit.files.get(path)
        return f"{self.url}/{path}" if file is None else self.files.place(file.key)

    def problems(self) -> list[str]:
        """Return the files far away that are missing or have another size; reads no content."""
        assert self.commit is not None
        sizes = self.files.sizes(DATA)
        found = []
        for file in self.commit.files.values():
            if file.key not in sizes:
                found.append(f"{self.files.place(file.key)}: missing")
            elif sizes[file.key] != file.size:
                found.append(f"{self.files.place(file.key)}: damaged: its size is another one")
        return found

    def _wanted(self, path: str) -> bool:
        if path.startswith(f"{INDEX_FOLDER}/"):
            return self._tables or path == f"{INDEX_FOLDER}/{SERVING}"
        return not path.startswith((OBJECTS, BASE))

    def _take(self, commit: Commit) -> None:
        """Give the tree the files of a commit."""
        here = scan(self.tree)
        held = {p: q for p, q in self.placed.items() if here.get(p) == q.stamp}
        wanted = {
            path: file
            for path, file in commit.files.items()
            if (self._wanted(path) or path in self.placed)
            and (path not in held or held[path].sha256 != file.sha256)
        }
        damaged = self._download(wanted)
        for path in damaged:
            self.say(f"note: {self._damaged(wanted[path])}")
        self._dirty = True
        self.placed = held
        self._place(wanted, damaged)
        self._remove([path for path in here if path not in commit.files])
        self.placed = {path: q for path, q in self.placed.items() if path in commit.files}
        self.commit, self.dropped, self._dirty = commit, set(), False
        self._contents.keep(file.sha256 for file in commit.files.values())

    def _download(self, wanted: dict[str, File]) -> dict[str, bytes]:
        """Fetch contents; return path -> content of those that are damaged."""
        files = {file.sha256: file for file in wanted.values()}
        if not files:
            return {}

        def one(file: File) -> bytes | None:
            try:
                return self._contents.fetch(
                    file.sha256, file.size, lambda path: self.files.download(file.key, path)
                )
            except FileNotFoundError as error:
                raise FileNotFoundError(self.files.place(file.key)) from error

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="everclip-store") as pool:
            found = dict(zip(files, pool.map(one, files.values()), strict=True))
        return {path: data for path, file in wanted.items() if (data := found[file.sha256]) is not None}

    def _place(self, wanted: dict[str, File], damaged: dict[str, bytes]) -> None:
        """Put files into the tree: what others name first, and a version that is new in one rename."""
        new = {
            path.split("/")[1]
            for path in wanted
            if path.startswith(VERSIONS) and not (self.tree / VERSIONS / path.split("/")[1]).exists()
        }
        aside = {version: self.tree / VERSIONS / f".{version}.tmp" for version in new}
        order = {path: place for place, path in enumerate(LAST)}
        for path in sorted(wanted, key=lambda path: (order.get(path, -1), path)):
            if path in order and aside:
                self._reveal(aside)
            target = self.tree / path
            if path.startswith(VERSIONS) and (version := path.split("/")[1]) in aside:
                target = aside[version].joinpath(*path.split("/")[2:])
            target.parent.mkdir(parents=True, exist_ok=True)
            if path in damaged:
                target.unlink(missing_ok=True)
                target.write_bytes(damaged[path])
            else:
                link(self._contents.path(wanted[path].sha256), target, copy=path in LAST)
            self.placed[path] = Placed(wanted[path].sha256, stamp_of(target))
        self._reveal(aside)

    def _reveal(self, aside: dict[str, Path]) -> None:
        for version, folder in aside.items():
            folder.rename(self.tree / VERSIONS / version)
        aside.clear()

    def _remove(self, gone: Sequence[str]) -> None:
        versions = {path.split("/")[1] for path in gone if path.startswith(VERSIONS)}
        left = {p.split("/")[1] for p in self.placed if p.startswith(VERSIONS) and p not in gone}
        for version in versions - left:
            remove_folder(self.tree / VERSIONS / version)
        for path in gone:
            (self.tree / path).unlink(missing_ok=True)
            for folder in list((self.tree / path).parents)[: path.count("/")]:
                if not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()  # a table without files would still be listed

    # -- changing ---------------------------------------------------------------------------------------------

    @contextmanager
    def changing(
        self,
        part: Part,
        verb: str,
        wait: bool = False,
        *,
        whole: bool = False,
        on_error: Sequence[str] | None = None,
    ) -> Iterator[Holder | None]:
        """Hold the lease of a part while the tree is changed, then publish it. Yields who left it unfinished.

        Args:
            part: what is changed.
            verb: what is done, for others.
            wait: wait for another process.
            whole: refuse to publish if the other part was changed meanwhile too.
            on_error: the files that are published if the work fails; `None`: all of the part.

        Raises:
            RunFolderError: if another process changes this part, or has changed it meanwhile; names it.
        """
        with leased(self.files, LEASES[part], verb, wait, self.say) as lease, self._lock:
            self.refresh(anew=True)
            left = lease.interrupted
            if left is not None and self._has_published(left, part):  # it was killed after its work
                left = None
            with self._publishing(lease, part, whole) as publisher:
                try:
                    yield left
                except BaseException:
                    with suppress(EverclipError):  # the error of the work counts more
                        publisher.publish(on_error)
                    raise
                publisher.publish()

    def _has_published(self, holder: Holder, part: Part) -> bool:
        assert self.commit is not None
        number = self.commit.changed[part]
        last = self.commit if number == self.commit.number else self.commits.of(number)
        return (
            last is not None
            and (last.verb, last.host, last.process) == (holder.verb, holder.host, holder.process)
            and last.at >= holder.since
        )

    @contextmanager
    def creating(self, verb: str) -> Iterator[None]:
        """Publish the first commit.

        Raises:
            ConfigError: if there is something at the URL.
            RunFolderError: if another process makes a store there.
        """
        rest = (f"{DATA}/", f"{LEASE}/")  # as a killed process leaves it
        if other := [key for key in self.files.sizes() if not key.startswith(rest) and "/." not in key]:
            raise ConfigError(
                f"{self.files.place(other[0])}: there is something already; a store needs a new or empty folder."
            )
        with (
            leased(self.files, LEASES["model"], verb, False, self.say) as lease,
            self._lock,
            self._publishing(lease, "model", True) as publisher,
        ):
            yield
            publisher.publish()

    @contextmanager
    def _publishing(self, lease: Lease, part: Part, whole: bool) -> Iterator[Publisher]:
        self._publisher = publisher = Publisher(self, self._contents, lease, part, whole)
        self._dirty = True  # until everything is published, the tree is no commit
        try:
            yield publisher
            self._dirty = publisher.joined
        finally:
            self._publisher = None

    def publish_now_and_then(self) -> None:
        """Publish what is done so far if the last time is long ago; nothing outside `changing`."""
        if self._publisher is not None:
            self._publisher.publish_if_due()
