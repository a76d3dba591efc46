"""Files far away (`s3://`, `hf://`...) read by blocks through fsspec, with a bounded cache on disk.

A block is fetched once and kept in the cache folder, so that samples near each other cost one request. Accounts and
keys come from the environment, as fsspec's back ends define it; a URL that holds them is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from everclip.errors import ConfigError, DataError, EverclipError
from everclip.files import cache_folder, warn_once
from everclip.urls import brief_error

BLOCK = 4 * 1024 * 1024
"""Bytes of one request."""

LIMIT = "EVERCLIP_REMOTE_CACHE_GB"
"""The environment variable that bounds the blocks on disk; default: 20."""

_CHANGES = ("ETag", "mtime", "Last-Modified", "LastModified")  # facts that change with the content
_TRIES = 3
_FREED = 0.9  # of the limit: what is left after the oldest blocks are removed
_UNSEEN = 0.05  # of the limit: what a process adds before it looks at what others added


class RemoteFile:
    """A file behind a URL, with the part of `Path` that readers of shards use.

    Args:
        url: where it is.

    Raises:
        DataError: if it is not there.
    """

    parent: Path | None = None
    """No folder of this machine: paths inside the file lead nowhere."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url, url.rstrip("/").rpartition("/")[2]
        self._system, self._path = file_system(url)
        facts, stated = _tried(url, lambda: (self._system.info(self._path), self._system.ukey(self._path)))
        self.size = int(facts["size"])
        # The `ukey` of some systems (https) is made from the URL alone.
        state = "\0".join(map(str, (url, self.size, stated, *(facts.get(name) for name in _CHANGES))))
        self.key = hashlib.sha256(state.encode()).hexdigest()[:32]
        """Changes when the content does."""
        self._last = -1

    def __str__(self) -> str:
        return self.url

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return the file, to be read from any position."""
        return io.BufferedReader(_Reader(self), 64 * 1024)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes; fewer at the end of the file.

        Raises:
            DataError: if they cannot be fetched.
        """
        stop = min(offset + size, self.size)
        found = []
        for number in range(offset // BLOCK, -(-stop // BLOCK)):
            start = number * BLOCK
            found.append(self.block(number, max(0, offset - start), stop - start))
        return b"".join(found)

    def block(self, number: int, start: int = 0, stop: int | None = None) -> bytes:
        """Return a part of a block; the block after it is fetched ahead while blocks are read in their order."""
        if number == self._last + 1 and (number + 1) * BLOCK < self.size:
            _fetchers().submit(self.fetch, number + 1)
        self._last = number
        return blocks().get(
            self.key, number, self._size_of(number), lambda: self._fetched(number), start, stop
        )

    def fetch_range(self, offset: int, size: int) -> None:
        """Bring the blocks of a range into the cache."""
        for number in range(offset // BLOCK, -(-(offset + size) // BLOCK)):
            self.fetch(number)

    def fetch(self, number: int) -> None:
        """Bring a block into the cache; an error will be found by whoever reads it."""
        try:
            blocks().get(self.key, number, self._size_of(number), lambda: self._fetched(number), stop=0)
        except DataError as error:
            warn_once(self.url, f"read ahead: {error}")

    def _size_of(self, number: int) -> int:
        return min(BLOCK, self.size - number * BLOCK)

    def _fetched(self, number: int) -> bytes:
        start, stop = number * BLOCK, min((number + 1) * BLOCK, self.size)
        data = bytes(_tried(self.url, lambda: self._system.cat_file(self._path, start=start, end=stop)))
        if len(data) != stop - start:
            raise DataError(
                f"{self.url}: {len(data):,} instead of {stop - start:,} bytes came from byte {start:,} on."
            )
        return data


class _Reader(io.RawIOBase):
    """A remote file as Python's file; it holds the last block in memory."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0
        self._number, self._data = -1, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while (
            done < len(view) and self._at < self._file.size
        ):  # headers are read whole, so a short answer is the end
            number, inner = divmod(self._at, BLOCK)
            if number != self._number:
                self._number, self._data = number, self._file.block(number)
            part = self._data[inner : inner + len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)
            self._at += len(part)
        return done


class Blocks:
    """A cache of blocks in files, for several threads and processes; the blocks used longest ago are removed first.

    Args:
        folder: where they lie.
        limit: bytes that they may take together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._lock = threading.Lock()
        self._coming: dict[tuple[str, int], Future[bytes]] = {}
        self._held, self._added = sum(size for _, size, _ in self._files()), 0

    def get(
        self,
        key: str,
        number: int,
        size: int,
        fetch: Callable[[], bytes],
        start: int = 0,
        stop: int | None = None,
    ) -> bytes:
        """Return a part of a block, from disk or by `fetch`; threads that want one block wait for one request.

        Args:
            key: of the file's content.
            number: of the block.
            size: of the block; a file of another size (a crash, a full disk) is fetched again.
            fetch: gets the block from far away.
            start, stop: the part, in bytes.
        """
        path = self._folder / key / str(number)
        found = _part_of(path, size, start, stop)
        if found is not None:
            return found
        mine: Future[bytes] = Future()
        with self._lock:
            coming = self._coming.setdefault((key, number), mine)
        if coming is not mine:
            return coming.result()[start:stop]
        try:
            # Another thread may have kept the block since the look at the disk above.
            data = _part_of(path, size, 0, None)
            if data is None:
                data = fetch()
                self._keep(path, data)
            mine.set_result(data)
            return data[start:stop]
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._coming[key, number]

    def _keep(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            warn_once(
                str(self._folder), f"{self._folder}: blocks cannot be kept ({error}); they are fetched again."
            )
            temporary.unlink(missing_ok=True)
            return
        with self._lock:
            self._held += len(data)
            self._added += len(data)
            due = self._held > self._limit or self._added > self._limit * _UNSEEN
            if due:
                self._added = 0
        if due:
            self._make_room()

    def _make_room(self) -> None:
        """Count what all processes keep; remove the oldest if it is too much."""
        found = sorted(self._files())
        held = sum(size for _, size, _ in found)
        over = held > self._limit
        for _, size, path in found:
            if not over or held <= self._limit * _FREED:
                break
            path.unlink(missing_ok=True)
            held -= size
        with self._lock:
            self._held = held

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return (time of last use, size, path) of every block."""
        found = []
        for path in self._folder.glob("*/*"):
            try:
                facts = path.stat()
            except FileNotFoundError:  # another process removed it
                continue
            found.append((facts.st_mtime, facts.st_size, path))
        return found


def _part_of(path: Path, size: int, start: int, stop: int | None) -> bytes | None:
    """Return a part of a block on disk, and note that it was used; `None` if it is not there with all its bytes."""
    try:
        os.utime(path)
        if stop == 0:
            return b"" if os.stat(path).st_size == size else None
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            file.seek(start)
            return file.read() if stop is None else file.read(stop - start)
    except OSError:
        return None


@lru_cache(maxsize=1)
def blocks() -> Blocks:
    """Return the cache of this process.

    Raises:
        ConfigError: for a limit that is no number.
    """
    given = os.environ.get(LIMIT, "20")
    try:
        limit = int(float(given) * 1e9)
    except ValueError as error:
        raise ConfigError(f"{LIMIT}: {given!r} is not a number of gigabytes.") from error
    return Blocks(cache_folder() / "remote", limit)


@lru_cache(maxsize=1)
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix="everclip-fetch")


@cache  # a limit below the number of shards would ask a server at every sample
def remote_file(url: str) -> RemoteFile:
    """Return the file of a URL; its facts are asked for once per process."""
    return RemoteFile(url)


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL and the path there.

    Raises:
        ConfigError: for an unknown kind of URL, or one whose package is not installed.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except Exception as error:  # each system has errors of its own, as of its log-in
        raise ConfigError(f"data.source: {url}: cannot be read ({brief_error(error)}).") from error
    return system, str(path)


def _tried(url: str, ask: Callable[[], Any]) -> Any:
    """Ask a server, again if it fails. Its errors are of many kinds: not all libraries raise an `OSError`."""
    for left in reversed(range(_TRIES)):
        try:
            return ask()
        except FileNotFoundError as error:
            raise DataError(f"{url}: the file is not there.") from error
        except EverclipError:
            raise
        except Exception as error:
            if left == 0 or isinstance(error, PermissionError):
                raise DataError(f"{url}: cannot be read ({brief_error(error)}).") from error
            time.sleep(2.0 ** (_TRIES - 1 - left))
    raise AssertionError("the last try returns or raises")
