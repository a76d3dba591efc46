"""Files far away, through fsspec: read and written whole, or created only if nothing is there.

Accounts and keys come from the environment, as fsspec's back ends define it (`AWS_PROFILE`, `AWS_ENDPOINT_URL`...); a
URL that holds them is refused.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from everclip.errors import ConfigError, EverclipError, RunFolderError
from everclip.files import disk_errors, sync_and_rename, write_bytes_atomic
from everclip.urls import brief_error, require_no_secrets

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # a disk without hard links

T = TypeVar("T")
Say = Callable[[str], None]

EXCLUSIVE = ("s3", "s3a", "gs", "gcs", "file", "local", "memory")
"""Kinds of URLs whose back end is known to create a file only if there is none, in one step."""

_PATTERN = "*?["

_TRIES = 3
_PATIENT = 8
"""Tries of what ends a change, which may have taken hours: about a minute."""

_WITHOUT_FOLDERS = ("s3", "s3a", "gs", "gcs", "memory")  # no folder must be made before a file


def open_files(
    url: str, say: Say = lambda line: None, what: str = "store", given_as: str = "STORE"
) -> RemoteFiles:
    """Open the folder of a URL.

    Args:
        url: such as `s3://bucket/shop`.
        say: called with lines for the user.
        what: what the folder is, for people.
        given_as: the argument or setting that holds the URL, for people.

    Raises:
        ConfigError: if the URL holds a key, or its back end is not installed.
    """
    require_no_secrets(url, given_as)
    kind, _, path = url.partition("://")
    local = kind.lower() in ("file", "local")
    if not path.strip("/"):
        raise ConfigError(f"{given_as}: {url!r} names no place; expected one such as s3://bucket/shop.")
    if not local and (wrong := next((c for c in path if c in f"{_PATTERN}#"), None)):
        raise ConfigError(
            f"{given_as}: {url}: {wrong!r} is a pattern for some back ends, which would read or remove other files; "
            "choose another name."
        )
    return (_LocalFiles if local else RemoteFiles)(url.rstrip("/"), kind.lower(), say, what)


class RemoteFiles:
    """The files below a URL. A key is a path below it, with `/`.

    Args:
        url: without a slash at the end.
        kind: the part of the URL before `://`.
        say: called with lines for the user.
        what: what the folder is, for people.
    """

    def __init__(self, url: str, kind: str, say: Say = lambda line: None, what: str = "store") -> None:
        self.url, self.kind, self.say, self._what = url, kind, say, what
        self._system, root = _file_system(url, kind)
        self._root = root.rstrip("/")

    @property
    def not_exclusive(self) -> str:
        """Why a folder cannot lie here if files cannot be created only where there is none."""
        return (
            f"a {self._what} needs files that are created only if there is none, which is not possible here"
        )

    def place(self, key: str) -> str:
        """Return the URL of a file."""
        return f"{self.url}/{key}"

    def read(self, key: str) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: if there is none.
            RunFolderError: if the server does not answer, or refuses.
        """
        return bytes(self._tried(key, lambda: self._system.cat_file(self._path(key))))

    def write(self, key: str, data: bytes) -> None:
        """Write a file, or replace it.

        Raises:
            RunFolderError: if the server does not answer, or refuses.
        """
        self._tried(key, lambda: self._in_folder(key, lambda: self._write(key, data)))

    def _write(self, key: str, data: bytes) -> None:
        self._system.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """Write a file if there is none; return whether it was written.

        Args:
            key: of the file.
            data: unlike what any other process writes, so that an answer that was lost is recognised.

        Raises:
            ConfigError: if this kind of file system cannot do it.
            RunFolderError: if the server does not answer, or refuses.
        """
        try:
            self._tried(key, lambda: self._in_folder(key, lambda: self._create(key, data)), _PATIENT)
            return True
        except FileExistsError:
            pass
        try:
            return self.read(key) == data  # written by an earlier try, whose answer was lost
        except FileNotFoundError:  # removed since, so it was another's
            return False

    def _create(self, key: str, data: bytes) -> None:
        try:
            self._system.pipe_file(self._path(key), data, mode="create")
        except (NotImplementedError, TypeError) as error:
            raise ConfigError(f"{self.url}: {self.not_exclusive} ({brief_error(error)}).") from error

    def upload(self, path: Path, key: str) -> None:
        """Write a file of this machine.

        Raises:
            RunFolderError: if the server does not answer, or refuses.
        """
        self._tried(key, lambda: self._in_folder(key, lambda: self._upload(path, key)), _PATIENT)

    def _upload(self, path: Path, key: str) -> None:
        self._system.put_file(str(path), self._path(key))

    def download(self, key: str, path: Path) -> None:
        """Write a file to this machine.

        Raises:
            FileNotFoundError: if there is none.
            CheckpointError: if the disk of this machine is full.
            RunFolderError: if the server does not answer, or refuses.
        """

        def get() -> None:
            try:
                self._system.get_file(self._path(key), str(path))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    with disk_errors(path):
                        raise
                raise

        self._tried(key, get)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return key -> size in bytes of all files below a folder."""

        try:
            return self._tried(folder, lambda: self._sizes(folder))
        except FileNotFoundError:
            return {}

    def _sizes(self, folder: str) -> dict[str, int]:
        found = self._system.find(self._path(folder), detail=True)
        start = len(self._system._strip_protocol(self._root).rstrip("/")) + 1
        return {name[start:]: int(facts["size"] or 0) for name, facts in found.items()}

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted."""
        return sorted(key.rpartition("/")[2] for key in self.sizes(folder))

    def remove(self, keys: Sequence[str]) -> None:
        """Remove files; those that are gone are none."""

        def act() -> None:
            try:
                if any(c in key for key in keys for c in _PATTERN):
                    raise FileNotFoundError  # for some back ends, one name would mean several files
                self._system.rm([self._path(key) for key in keys])
            except FileNotFoundError:  # one of them: the others still go
                for key in keys:
                    if self._system.exists(self._path(key)):
                        self._system.rm_file(self._path(key))

        if keys:
            self._tried(keys[0], act)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    def _in_folder(self, key: str, act: Callable[[], None]) -> None:
        """Write a file, and make its folder first if this kind has folders and there is none."""
        try:
            act()
        except FileNotFoundError as error:
            if self.kind in _WITHOUT_FOLDERS:
                raise RunFolderError(
                    f"{self.place(key)}: cannot be written: there is no such bucket ({brief_error(error)})."
                ) from error
            self._system.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)
            act()

    def _tried(self, key: str, ask: Callable[[], T], tries: int | None = None) -> T:
        """Ask a server, again if it fails. Its errors are of many kinds: not all libraries raise an `OSError`."""
        tries = _TRIES if tries is None else tries
        for left in reversed(range(tries)):
            try:
                self._system.invalidate_cache()  # s3fs keeps lists of files: what others made would not be seen
                return ask()
            except (FileNotFoundError, FileExistsError, EverclipError):
                raise
            except Exception as error:
                if left == 0 or isinstance(error, PermissionError):
                    raise RunFolderError(
                        f"{self.place(key)}: cannot be reached ({brief_error(error)})."
                    ) from error
                time.sleep(2.0 ** (tries - 1 - left) / 2)
        raise AssertionError("the last try returns or raises")


class _LocalFiles(RemoteFiles):
    """Files below a `file://` URL, such as a folder that several machines share; whole as soon as they are there."""

    def _create(self, key: str, data: bytes) -> None:
        path = Path(self._path(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            write_bytes_atomic(temporary, data)
            os.link(temporary, path)  # fails if there is one
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise ConfigError(f"{self.url}: {self.not_exclusive} ({brief_error(error)}).") from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, key: str, data: bytes) -> None:
        write_bytes_atomic(Path(self._path(key)), data)

    def _sizes(self, folder: str) -> dict[str, int]:
        """List files; fsspec would take a folder that cannot be read for an empty one."""
        found: dict[str, int] = {}
        for parent, _, names in os.walk(self._path(folder), onerror=_raise_unless_gone):
            for name in names:
                path = os.path.join(parent, name)
                with suppress(FileNotFoundError):  # removed or renamed just now
                    found[os.path.relpath(path, self._root)] = os.stat(path).st_size
        return found

    def _upload(self, path: Path, key: str) -> None:
        target = Path(self._path(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            shutil.copyfile(path, temporary)
            sync_and_rename(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _file_system(url: str, kind: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        hint = "pip install 'everclip[scale]'" if kind in ("s3", "s3a") else str(error)
        raise ConfigError(f"{url}: the package for `{kind}://` is not installed: {hint}") from error
    except Exception as error:  # each system has errors of its own, as of its log-in
        raise ConfigError(f"{url}: cannot be opened ({brief_error(error)}).") from error
    return system, str(path)
