"""WebDataset shards: `.tar` archives whose members share a key, pictures found again by their place in the file.

Read by the standard library's headers, not through `datasets`: that would copy every picture and give up the whole
archive for one damaged member. Nothing is ever unpacked.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from everclip.data.pictures import places
from everclip.data.quarantine import Entry
from everclip.data.readers.foreign import foreign_note, is_foreign_file, is_foreign_path
from everclip.data.readers.jsonl import MAX_LINE, parsed
from everclip.data.readers.pairs import lines_of, uniform
from everclip.data.readers.raw import FOREIGN_ENDINGS, IMAGE_ENDINGS, Raw, table_of
from everclip.errors import DataError

_TEXTS = ("txt", "text", "caption")
_LABELS = ("cls", "class", "label")
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1024 * 1024
_HEAD_READS = 16
_HEAD_BYTES = 16 * 1024  # of an extended head: names and attributes
_DIGITS = re.compile(rb"\d{257}")  # more of them take the standard library's patterns quadratic time


@dataclass
class _Sample:
    key: str
    number: int
    cells: dict[str, Any] = field(default_factory=dict)
    image: tuple[int, int] | None = None
    problem: tuple[str, str] | None = None

    def completes(self, other: _Sample) -> bool:
        """Whether this holds what another sample of the key lacks, and nothing that it has."""
        apart = self.image is None or other.image is None
        return apart and self.problem is None and not set(self.cells) & set(other.cells) - {"__key__"}

    def add(self, other: _Sample) -> None:
        """Take what another sample of the key holds."""
        self.image = self.image or other.image
        self.cells |= other.cells
        self.problem = self.problem or other.problem


def read_shard(path: Path) -> Raw:
    """Read a `.tar` archive.

    Members of one key are one sample: a picture, its caption (`.txt`; several lines are several captions), its class
    (`.cls`), and the fields of `.json`.

    Raises:
        DataError: if the file is no archive.
    """
    broken: list[Entry] = []
    foreign: list[str] = []
    with open(path, "rb") as file:
        found, notes = _joined(path, list(_samples(path, file, broken, foreign)))
    samples = [sample for sample in found if sample.problem is None]
    broken += [
        Entry(sample.number, f"{path.name}, {sample.key}", *sample.problem)
        for sample in found
        if sample.problem is not None
    ]
    notes += foreign_note(path.name, foreign) + _captions_by_line(path, samples)
    names = dict.fromkeys(name for sample in samples for name in sample.cells if name != "image")
    columns, odd = table_of(
        (sample.cells for sample in samples), ["__key__", *(n for n in names if n != "__key__")]
    )
    parts = [sample.image for sample in samples]
    images = places(
        len(parts),
        paths=[None if place is None else os.path.realpath(path) for place in parts],
        offsets=[None if place is None else place[0] for place in parts],
        sizes=[None if place is None else place[1] for place in parts],
    )
    return Raw(
        path.name,
        columns.append_column("image", images),
        [sample.number for sample in samples],
        broken,
        root=path.parent,
        known={"image": "image"},
        labels=[sample.key for sample in samples],
        notes=notes,
        odd=odd,
    )


def _joined(path: Path, found: list[_Sample]) -> tuple[list[_Sample], list[str]]:
    """Join samples of one key whose members do not stand next to each other, where they complete each other."""
    first: dict[str, _Sample] = {}
    kept: list[_Sample] = []
    joined = 0
    for sample in found:
        earlier = first.setdefault(sample.key, sample)
        if earlier is not sample and earlier.completes(sample):
            earlier.add(sample)
            joined += 1
        else:
            kept.append(sample)
    if not joined:
        return found, []
    return kept, [
        f"{path.name}: members of {joined:,} keys do not stand next to each other; they are joined by the key"
    ]


def _captions_by_line(path: Path, samples: list[_Sample]) -> list[str]:
    """Make a caption of every line of a text member; returns a line for people where there are several."""
    notes = []
    for name in _TEXTS:
        held = [sample for sample in samples if isinstance(sample.cells.get(name), str)]
        split = [lines_of(sample.cells[name]) for sample in held]
        several = sum(isinstance(lines, list) for lines in split)
        if several:
            for sample, lines in zip(held, uniform(split), strict=True):
                sample.cells[name] = lines
            notes.append(
                f"{path.name}: several lines of a .{name} member are several captions: {several:,} members"
            )
    return notes


def _samples(path: Path, file: BinaryIO, broken: list[Entry], foreign: list[str]) -> Iterator[_Sample]:
    """Yield the samples of an archive: what stands next to each other under one key."""
    current: _Sample | None = None
    number, size = 0, path.stat().st_size
    for member in _members(path, file, broken):
        problem = _unsafe(member)
        if problem is not None:
            broken.append(Entry(None, f"{path.name}, {member.name[:200]!a}", "unsafe-member", problem))
            continue
        if not member.isfile():
            continue
        folder, _, base = member.name.rpartition("/")
        if is_foreign_file(base) or is_foreign_path(member.name):
            foreign.append(base)
            continue
        stem, _, ending = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if current is None or current.key != key:
            if current is not None:
                yield current
            number += 1
            current = _Sample(key, number, {"__key__": key})
        _take(current, ending.lower().rpartition(".")[2], member, file, size)
    if current is not None:
        yield current


def _take(sample: _Sample, ending: str, member: tarfile.TarInfo, file: BinaryIO, size: int) -> None:
    """Add a member to its sample."""
    if ending in IMAGE_ENDINGS or ending in FOREIGN_ENDINGS:
        if sample.image is not None:
            sample.problem = ("bad-row", "two pictures under one key (a key ends at the first dot of a name)")
        sample.image = (member.offset_data, member.size)
        if member.offset_data + member.size > size:
            sample.problem = (
                "truncated",
                f"{size - member.offset_data:,} of {member.size:,} bytes are there",
            )
        return
    if ending not in (*_TEXTS, *_LABELS, "json"):
        return
    if member.size > MAX_LINE:
        sample.problem = ("bad-row", f"{ending} of {member.size:,} bytes; at most {MAX_LINE:,} are read")
        return
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) < member.size:
        sample.problem = ("bad-row", f"{ending} ends early")
    elif ending == "json":
        found = parsed(data)
        if isinstance(found, dict):
            sample.cells.update({name: v for name, v in found.items() if name != "__key__"})
        else:
            sample.problem = found
    else:
        try:
            sample.cells[ending] = data.decode().strip() or None
        except UnicodeDecodeError as error:
            sample.problem = ("bad-utf8", f"{ending}: byte {error.start} is not UTF-8")


def _unsafe(member: tarfile.TarInfo) -> str | None:
    """Return why a member may not be read, or `None`."""
    if member.issym() or member.islnk():
        return f"a link to {member.linkname[:200]!a}"
    if member.isdev():
        return "a device"
    if member.issparse():
        return "a sparse file"
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        return "a path that leaves the archive"
    if any("\ud800" <= c <= "\udfff" for c in member.name):
        return "a name that is not UTF-8"
    return None


def _members(path: Path, file: BinaryIO, broken: list[Entry]) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive; past a damaged head the next sound one is looked for."""
    size = path.stat().st_size
    at = _next_head(file, 0)
    if at is None:
        raise DataError(
            f"{path}: not a readable tar archive ({size:,} bytes). Archives must not be compressed (.tar.gz): "
            "pictures are read at their place in the file."
        )
    while at is not None:
        if at:
            detail = f"the archive is damaged before byte {at:,}: what stood there is lost"
            broken.append(Entry(None, path.name, "bad-row", detail))
        stopped, cut = at, False
        for member, after in _walk(file, at, size):
            stopped = after
            cut = member.offset_data + member.size > size
            yield member
        if stopped >= size or not _left(file, stopped):
            return
        following = _next_head(file, stopped if cut else stopped + _BLOCK)
        if following is None and not cut:
            detail = f"the archive is damaged from byte {stopped:,} on: what stood there is lost"
            broken.append(Entry(None, path.name, "bad-row", detail))
        at = following


def _walk(file: BinaryIO, start: int, size: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield (member, where the next head stands) from `start` on, until a head is unsound."""
    # Made on nothing, then pointed at the file: the class reads a first member on its own otherwise.
    reader = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * _BLOCK)), errorlevel=0)
    heads = _Heads(file)
    reader.fileobj, reader.offset = heads, start  # type: ignore[assignment]  # all that heads are read by
    while reader.offset < size:
        before = reader.offset
        heads.start(before)
        try:
            member = tarfile.TarInfo.fromtarfile(reader)
        except (tarfile.HeaderError, ValueError, OverflowError):
            return
        # Sizes are written by others: they may lead back, or beyond the end.
        sound = member.size >= 0 and member.offset_data >= before + _BLOCK and reader.offset > before
        if not sound or (member.isreg() and member.offset_data > size):
            return
        if member.isreg() and member.offset_data + member.size > size:
            # Cut short, or its size is damaged: sound heads may still follow.
            yield member, member.offset_data
            return
        yield member, min(reader.offset, size)


class _Heads:
    """The archive as heads are read from it: a hostile one asks for any number of bytes, or for head after head."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._reads = 0
        self.seek, self.tell = file.seek, file.tell

    def start(self, at: int) -> None:
        """Go to where a member's head begins."""
        self._file.seek(at)
        self._reads = 0

    def read(self, count: int) -> bytes:
        """Read a part of a head.

        Raises:
            HeaderError: if it is larger, or in more parts, than any real one; or not all there.
        """
        self._reads += 1
        if self._reads > _HEAD_READS or count > _HEAD_BYTES:
            raise tarfile.HeaderError("too large")
        data = self._file.read(count)
        if len(data) < count or _DIGITS.search(data):
            raise tarfile.HeaderError("ends early, or holds an endless number")
        return data


def _chunks(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (place, bytes) from `start` on, first a little: what is looked for is mostly near."""
    at, count = start, 8 * _BLOCK
    file.seek(at)
    while data := file.read(count):
        yield at, data
        at += len(data)
        count = min(2 * count, _CHUNK)
        file.seek(at)


def _next_head(file: BinaryIO, start: int) -> int | None:
    """Return the first place from `start` on, in steps of a block, where a sound head stands."""
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


def _left(file: BinaryIO, start: int) -> bool:
    """Whether anything but zeros follows: an archive ends with empty blocks."""
    return any(data.count(0) != len(data) for _, data in _chunks(file, start))
