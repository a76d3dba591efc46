"""Read the members of a `.tar` archive by their headers; after a damaged header, search for the next valid one.

The standard library parses the headers. Nothing is ever unpacked.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from everclip.data.pictures.remote import RemoteFile
from everclip.data.reading.quarantine import DAMAGED, DamagedFileError, Entry

_BLOCK = tarfile.BLOCKSIZE
_EMPTY_SIZES = (2 * _BLOCK, tarfile.RECORDSIZE)  # of archives without members: only the mark of the end
_CHUNK = 1024 * 1024
_HEAD_READS = 16
_HEAD_BYTES = 16 * 1024  # of an extended header: names and attributes
_DIGITS = re.compile(rb"\d{257}")  # with more digits the standard library's patterns take quadratic time


class NoArchiveError(DamagedFileError):
    """The file is not a tar archive."""


def members(path: Path | RemoteFile, file: BinaryIO, broken: list[Entry]) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive, which may have none; after a damaged header, continue at the next valid one.

    Raises:
        NoArchiveError: if there is no valid header.
    """
    size = file.seek(0, io.SEEK_END)
    at = _next_head(file, 0)
    if at is None and size in _EMPTY_SIZES and not _more_follows(file, 0):
        return
    if at is None:
        raise NoArchiveError(
            f"{path}: not a readable tar archive ({size:,} bytes). {_what_it_is(file, size)}"
        )
    seen = _Progress(path.name)
    while at is not None:
        if at:
            broken.append(
                seen.damage(f"the archive is damaged before byte {at:,}: the members there are lost")
            )
        stopped, cut = at, False
        for member, after in _walk(file, at, size):
            stopped = after
            cut = member.offset_data + member.size > size
            seen.take(member, whole=not cut)
            yield member
        if stopped >= size or not _more_follows(file, stopped):
            if cut:
                broken.append(seen.damage(f"it is cut short inside {seen.last!a}: what followed is lost"))
            return
        following = _next_head(file, stopped if cut else stopped + _BLOCK)
        if following is None:
            what = (
                f"it is cut short inside {seen.last!a}" if cut else f"it is damaged from byte {stopped:,} on"
            )
            broken.append(seen.damage(f"{what}: what followed is lost"))
        at = following


class _Progress:
    """Counts the members that were read so far, for messages."""

    def __init__(self, archive: str) -> None:
        self._archive = archive
        self._count = 0
        self._whole = ""
        self.last = ""

    def take(self, member: tarfile.TarInfo, whole: bool) -> None:
        """Count a member."""
        self.last = member.name[:100]
        if whole:
            self._count += 1
            self._whole = self.last

    def damage(self, what: str) -> Entry:
        """Return an entry about the damage and the intact members before it."""
        before = (
            f"; {self._count:,} members before it are whole, the last is {self._whole!a}"
            if self._count
            else ""
        )
        return Entry(None, self._archive, DAMAGED, what + before)


_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


def _what_it_is(file: BinaryIO, size: int) -> str:
    """Return a sentence about a file that is not an archive: its probable kind, and the remedy."""
    file.seek(0)
    start = file.read(_BLOCK)
    if not start.strip(b"\0"):
        return "It is empty: download or write it again."
    if start.lstrip()[:1] == b"<":
        return f"It begins with {start.lstrip()[:20].decode('latin-1')!a}, as a web page does: download it again."
    if start.startswith(b"version https://git-lfs"):
        return "It is a pointer of Git LFS: fetch the file itself (git lfs pull)."
    for first, program in _COMPRESSED.items():
        if start.startswith(first):
            return f"It is compressed by {program}; unpack it: images are read at their place in the file."
    return "It may be damaged, or of another kind: download or write it again."


def _walk(file: BinaryIO, start: int, size: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield (member, position of the next header) from `start` on, up to the first invalid header."""
    # Created on an empty buffer, then pointed at the file: the constructor would read the first member itself.
    reader = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * _BLOCK)), errorlevel=0)
    heads = _Heads(file)
    reader.fileobj, reader.offset = heads, start  # type: ignore[assignment]  # the methods that reading headers needs
    while reader.offset < size:
        before = reader.offset
        heads.start(before)
        try:
            member = tarfile.TarInfo.fromtarfile(reader)
        except (tarfile.HeaderError, ValueError, OverflowError):
            return
        # Sizes are untrusted: they may point backwards or beyond the end.
        sound = member.size >= 0 and member.offset_data >= before + _BLOCK and reader.offset > before
        if not sound or (member.isreg() and member.offset_data > size):
            return
        if member.isreg() and member.offset_data + member.size > size:
            # Cut short, or its size is damaged: valid headers may still follow.
            yield member, member.offset_data
            return
        yield member, min(reader.offset, size)


class _Heads:
    """File access for reading headers, with limits: a hostile archive asks for endless bytes or endless headers."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._reads = 0
        self.seek, self.tell = file.seek, file.tell

    def start(self, at: int) -> None:
        """Seek to the header of a member."""
        self._file.seek(at)
        self._reads = 0

    def read(self, count: int) -> bytes:
        """Read a part of a header.

        Raises:
            HeaderError: if it is larger or has more parts than any real header, or ends early.
        """
        self._reads += 1
        if self._reads > _HEAD_READS or count > _HEAD_BYTES:
            raise tarfile.HeaderError("too large")
        data = self._file.read(count)
        if len(data) < count or _DIGITS.search(data):
            raise tarfile.HeaderError("ends early, or holds an endless number")
        return data


def _chunks(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (position, bytes) from `start` on; the first blocks are small, since the next header is usually near."""
    at, count = start, 8 * _BLOCK
    file.seek(at)
    while data := file.read(count):
        yield at, data
        at += len(data)
        count = min(2 * count, _CHUNK)
        file.seek(at)


def _next_head(file: BinaryIO, start: int) -> int | None:
    """Return the position of the first valid header from `start` on, in steps of a block."""
    for at, data in _chunks(file, start):
        for inner in range(0, len(data) - _BLOCK + 1, _BLOCK):
            block = data[inner : inner + _BLOCK]
            if block[257:262] != b"ustar" and not (at + inner == 0 and block[:1] != b"\0"):
                continue
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.HeaderError, ValueError):
                continue
            return at + inner
    return None


def is_ended(file: BinaryIO) -> bool:
    """Whether an archive ends with an empty block; an archive that is cut between members does not."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _BLOCK))
    return not file.read(_BLOCK).strip(b"\0")


def _more_follows(file: BinaryIO, start: int) -> bool:
    """Whether anything but zeros follows; an archive ends with empty blocks."""
    return any(data.count(0) != len(data) for _, data in _chunks(file, start))
