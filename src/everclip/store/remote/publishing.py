"""Publish a change of a store far away: the files, then one commit that names them; then what nobody needs goes."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from everclip.errors import EverclipError, RunFolderError
from everclip.files import crash_point, file_digest
from everclip.lock import now
from everclip.remote.files import RemoteFiles, Say
from everclip.remote.lease import Lease
from everclip.remote.scanning import scan, stamp_of
from everclip.store.remote.commits import DATA, PARTS, Commit, Commits, File, Part, part_of
from everclip.store.remote.tree import Contents, Placed

EVERY = 60.0
"""Seconds between two times that a long change of the index is published."""

_AT_ONCE = 8


class Copy(Protocol):
    """What publishing needs of a working copy."""

    files: RemoteFiles
    commits: Commits
    tree: Path
    commit: Commit | None
    placed: dict[str, Placed]
    dropped: set[str]
    say: Say


class Publisher:
    """Publishes what was changed in a working copy.

    Args:
        copy: the working copy.
        contents: keeps what is uploaded, so that it is not downloaded again.
        lease: of the part that is changed.
        part: what is changed; changes of the other part's files are not published.
        whole: whether the other part must not have been changed meanwhile.

    Attributes:
        joined: whether a commit has files of the other part that the tree does not have.
    """

    def __init__(self, copy: Copy, contents: Contents, lease: Lease, part: Part, whole: bool) -> None:
        self._copy, self._contents, self._lease = copy, contents, lease
        self._part, self._whole = part, whole
        self.joined = False
        self._last = time.monotonic()

    def publish_if_due(self) -> None:
        """Publish if the last time is long ago."""
        if time.monotonic() - self._last >= EVERY:
            self.publish()

    def publish(self, only: Sequence[str] | None = None) -> None:
        """Make a commit of the changed files; none if nothing changed.

        Args:
            only: paths in the store; other changes are left out.

        Raises:
            RunFolderError: if another process has taken over the lease, or changed this part; or the server does not
                answer. The store is as before then.
        """
        copy, base = self._copy, self._copy.commit
        before = {} if base is None else _of_part(base, self._part)
        here = {p: stamp for p, stamp in scan(copy.tree).items() if part_of(p) == self._part}
        gone = ({p for p in copy.placed if part_of(p) == self._part} - here.keys()) | copy.dropped
        fresh = [p for p, stamp in here.items() if p not in copy.placed or copy.placed[p].stamp != stamp]
        if only is not None:
            gone, fresh = gone & set(only), [path for path in fresh if path in only]
        if not gone and not fresh:
            return
        stamps = {path: here[path] for path in fresh}
        brought = self._upload(fresh, before, base)
        crash_point("in remote store: uploaded")
        files = {path: file for path, file in before.items() if path not in gone} | brought
        commit = self._commit(base, files)
        crash_point("in remote store: committed")
        copy.commit, copy.dropped = commit, copy.dropped - gone
        for path in gone:
            copy.placed.pop(path, None)
        for path, file in brought.items():
            copy.placed[path] = Placed(file.sha256, stamps[path])
        self._clean(commit, before)
        self._last = time.monotonic()

    def _upload(self, paths: Sequence[str], before: dict[str, File], base: Commit | None) -> dict[str, File]:
        """Upload files whose content is not there yet; return them as a commit names them."""
        tree = self._copy.tree
        known = {file.sha256: file for file in before.values()}
        number = 0 if base is None else base.changed[self._part]
        start = f"{DATA}/{self._part}-{number:09d}-{uuid.uuid4().hex[:8]}"

        def one(path: str) -> File:
            source = tree / path
            sha256 = file_digest(source)
            if sha256 in known:
                return known[sha256]
            self._copy.files.upload(source, key := f"{start}/{path}")
            self._contents.put(source, sha256, copy=path.endswith(".sqlite"))
            crash_point("in remote store: uploading")
            return File(key=key, sha256=sha256, size=stamp_of(source)[2])

        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="everclip-store") as pool:
            return dict(zip(paths, pool.map(one, paths), strict=True))

    def _commit(self, base: Commit | None, files: dict[str, File]) -> Commit:
        """Make the commit behind the newest one, with the other part as it is there.

        Raises:
            RunFolderError: if this part was changed since the base.
        """
        while True:
            self._lease.require()
            newest = (
                self._copy.commits.newest()
            )  # read anew: someone may have removed the base, which was damaged
            self._require_unchanged(base, newest)
            number = 1 if newest is None else newest.number + 1
            changed = (
                dict.fromkeys(PARTS, number) if newest is None else newest.changed | {self._part: number}
            )
            rest = (
                {} if newest is None else {p: f for p, f in newest.files.items() if part_of(p) != self._part}
            )
            commit = Commit(
                number=number,
                at=now(),
                verb=self._lease.holder.verb,
                host=socket.gethostname(),
                process=os.getpid(),
                token=uuid.uuid4().hex,
                changed=changed,
                files=rest | files,
            )
            if self._copy.commits.add(commit):
                self.joined |= base is not None and newest is not None and newest.number != base.number
                return commit

    def _require_unchanged(self, base: Commit | None, newest: Commit | None) -> None:
        if newest is None and base is None:
            return
        parts = PARTS if self._whole else (self._part,)
        if (
            newest is None
            or base is None
            or newest.number < base.number
            or (newest.number == base.number and newest.token != base.token)
            or any(newest.changed[p] != base.changed[p] for p in parts)
        ):
            by = (
                "another process"
                if newest is None
                else f"`{newest.verb}` (process {newest.process} on {newest.host})"
            )
            raise RunFolderError(
                f"{self._copy.files.url}: {by} changed the store meanwhile. Nothing was published; repeat the command."
            )

    def _clean(self, commit: Commit, before: dict[str, File]) -> None:
        """Remove files of this part that neither this commit nor the one before it names.

        Those of processes that began from this commit or a later one are left alone: they may be publishing now. All
        others that are not named come from a change that was published (a later state does without them) or never
        will be.
        """
        kept = {file.key for file in (*before.values(), *commit.files.values())}
        try:
            found = self._copy.files.sizes(DATA)
            self._copy.files.remove(list(_ended(found, self._part, commit.number, kept)))
            self._copy.commits.forget_before(commit)
        except EverclipError as error:
            self._copy.say(f"note: files that are of no use any more could not be removed: {error}")
        crash_point("in remote store: cleaned")


def _ended(keys: Iterable[str], part: Part, number: int, kept: set[str]) -> Iterable[str]:
    for key in keys:
        of, _, rest = key.removeprefix(f"{DATA}/").partition("-")
        began = rest.partition("-")[0]
        if of == part and began.isdigit() and int(began) < number and key not in kept:
            yield key


def _of_part(commit: Commit, part: Part) -> dict[str, File]:
    return {path: file for path, file in commit.files.items() if part_of(path) == part}
