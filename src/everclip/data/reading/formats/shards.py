"""Read WebDataset shards: `.tar` archives whose members share keys; images are located by their offset in the file.

Read with the standard library, not through `datasets`: that would copy every image and reject the whole archive for
one damaged member. Nothing is ever unpacked, so that the name of a member is only a name.
"""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from everclip.data.pictures.location import locations
from everclip.data.pictures.remote import RemoteFile
from everclip.data.reading.formats.archive import is_ended, members
from everclip.data.reading.formats.jsonl import MAX_LINE, parsed
from everclip.data.reading.formats.pairs import all_lists, captions_in
from everclip.data.reading.formats.raw import IMAGE_ENDINGS, UNREADABLE_ENDINGS, Raw, table_of
from everclip.data.reading.formats.shard_samples import ByteRange, Sample, joined, name_parts
from everclip.data.reading.formats.system_files import (
    brief,
    is_system_file,
    is_system_path,
    system_files_note,
)
from everclip.data.reading.formats.text_file import decoded
from everclip.data.reading.quarantine import DAMAGED, Entry
from everclip.errors import DataError

_TEXTS = ("txt", "text", "caption")
_LABELS = ("cls", "class", "label")
_LINKED_TEXT = 4096  # bytes: any number of links may lead to one text


@dataclass
class _Archive:
    """An archive and its state while it is read.

    Attributes:
        path: its file.
        file: the same, open.
        encoding: of the texts, as the user says.
        at_last_dot: whether a key ends at the last dot of a name, instead of the first.
        byte_ranges: bytes of each member, for links to it.
        unresolved_links: targets of links that were not read before the link.
        broken: members that cannot be used.
        system_files: names of members left by systems and programs.
        links: number of links that were followed.
        rewritten_names: number of names that begin with a slash or have backslashes.
    """

    path: Path | RemoteFile
    file: BinaryIO
    encoding: str | None = None
    at_last_dot: bool = False
    byte_ranges: dict[str, ByteRange] = field(default_factory=dict)
    unresolved_links: set[str] = field(default_factory=set)
    broken: list[Entry] = field(default_factory=list)
    system_files: list[str] = field(default_factory=list)
    links: int = 0
    rewritten_names: int = 0

    def reset(self, at_last_dot: bool = False) -> _Archive:
        """Return the archive for another pass, with the known byte ranges."""
        return replace(
            self,
            at_last_dot=at_last_dot,
            unresolved_links=set(),
            broken=[],
            system_files=[],
            links=0,
            rewritten_names=0,
        )

    def notes(self) -> list[str]:
        """Return lines for people about links and names that were changed."""
        name, notes = self.path.name, []
        if self.links:
            notes.append(f"{name}: {self.links:,} links lead to members of the archive; these are read")
        if self.rewritten_names:
            notes.append(
                f"{name}: {self.rewritten_names:,} names are read as paths inside the archive, with / between"
            )
        if self.at_last_dot:
            notes.append(
                f"{name}: names hold dots, so a key ends at the last dot of a name, not at the first"
            )
        return notes + system_files_note(name, self.system_files)


def read_shard(path: Path | RemoteFile, encoding: str | None = None) -> Raw:
    """Read a `.tar` archive.

    Members of one key are one sample: an image, its caption (`.txt`; several lines are several captions), its class
    (`.cls`), and the fields of `.json` (a list of texts: captions).

    Args:
        path: the archive.
        encoding: of the texts, as the user says; `None`: UTF-8, or what their first bytes say.

    Raises:
        DataError: if the file is not an archive.
    """
    with path.open("rb") as file:
        archive, found = _read(_Archive(path, file, encoding))
        ended = is_ended(file)
        size = file.tell()
    if not found and not archive.broken and not archive.system_files:
        return Raw(
            path.name, pa.table({}), notes=[f"{path.name}: an archive without members"], root=path.parent
        )
    found, notes = joined(path.name, found)
    notes += name_parts(path.name, found)
    problems = [sample.find_problem(size) for sample in found]
    samples = [sample for sample, problem in zip(found, problems, strict=True) if problem is None]
    broken = archive.broken + [
        Entry(sample.number, f"{path.name}, {sample.key}", *problem)
        for sample, problem in zip(found, problems, strict=True)
        if problem is not None
    ]
    if not ended and all(entry.reason != DAMAGED for entry in broken):
        last = f", its last sample is {found[-1].key!a}" if found else ""
        notes.append(f"{path.name}: has no mark of an archive's end, so it may be cut short{last}")
    notes += archive.notes() + _captions_by_line(path, samples) + _extra_image_notes(path, samples)
    names = dict.fromkeys(name for sample in samples for name in sample.cells if name != "image")
    columns, odd = table_of(
        (sample.cells for sample in samples), ["__key__", *(n for n in names if n != "__key__")]
    )
    chosen = [sample.picture() for sample in samples]
    place = os.path.realpath(path) if isinstance(path, Path) else path.url
    images = locations(
        len(chosen),
        paths=[None if one is None else place for one in chosen],
        offsets=[None if one is None else one[1][0] for one in chosen],
        sizes=[None if one is None else one[1][1] for one in chosen],
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


def _read(archive: _Archive) -> tuple[_Archive, list[Sample]]:
    """Return the samples; read again if links point forwards, or if keys that end at the first dot collide."""
    found = list(_samples(archive))
    if archive.unresolved_links & archive.byte_ranges.keys():
        archive = archive.reset()
        found = list(_samples(archive))
    if any(sample.pictures and sample.picture() is None for sample in found):
        tried, other = archive.reset(at_last_dot=True), archive.reset(at_last_dot=True)
        if all(sample.is_complete() for sample in joined("", list(_samples(tried)))[0]):
            return other, list(_samples(other))
    return archive, found


def _captions_by_line(path: Path | RemoteFile, samples: Sequence[Sample]) -> list[str]:
    """Split text members into one caption per line; return a note if some have several lines."""
    notes = []
    for name in _TEXTS:
        held = [sample for sample in samples if isinstance(sample.cells.get(name), str)]
        split = [captions_in(sample.cells[name]) for sample in held]
        several = sum(isinstance(lines, list) for lines in split)
        if several:
            for sample, lines in zip(held, all_lists(split), strict=True):
                sample.cells[name] = lines
            notes.append(
                f"{path.name}: several lines of a .{name} member are several captions: {several:,} members"
            )
    return notes


def _extra_image_notes(path: Path | RemoteFile, samples: Sequence[Sample]) -> list[str]:
    """Return lines about further images of samples, and about folders that may be classes."""
    notes = []
    passed = Counter(
        ending
        for sample in samples
        for ending, _ in sample.pictures
        if len(sample.pictures) > 1 and "." in ending
    )
    if passed:
        listed = ", ".join(f".{ending}" for ending, _ in passed.most_common(3))
        notes.append(
            f"{path.name}: images beside those of a plain ending, not read: {passed.total():,} ({listed})"
        )
    if samples and all(len(sample.cells) == 1 for sample in samples):
        folders = sorted({posixpath.dirname(sample.key) for sample in samples} - {""})
        if len(folders) > 1:
            notes.append(
                f"{path.name}: no member is a text or a class, and the images lie in {len(folders):,} folders "
                f"({brief(folders)}); if these are classes: unpack the archive and give its folder as data"
            )
    return notes


def _samples(archive: _Archive) -> Iterator[Sample]:
    """Yield the samples of an archive: adjacent members with one key."""
    current: Sample | None = None
    number = 0
    for member in members(archive.path, archive.file, archive.broken):
        name = member.name.replace("\\", "/").lstrip("/")
        problem = _unsafe(member, name)
        if problem is not None:
            entry = Entry(None, f"{archive.path.name}, {member.name[:200]!a}", "unsafe-member", problem)
            archive.broken.append(entry)
            continue
        link = member.issym() or member.islnk()
        if not member.isfile() and not link:
            continue
        folder, _, base = name.rpartition("/")
        if is_system_file(base) or is_system_path(name):
            archive.system_files.append(base)
            continue
        archive.rewritten_names += name != member.name
        stem, _, ending = base.rpartition(".") if archive.at_last_dot else base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if current is None or current.key != key:
            if current is not None:
                yield current
            number += 1
            current = Sample(key, number, {"__key__": key})
        byte_range = _target(archive, member, name) if link else (member.offset_data, member.size)
        if byte_range is not None:
            archive.byte_ranges[posixpath.normpath(name)] = byte_range
        _add_member(current, ending.lower(), member, byte_range, archive)
    if current is not None:
        yield current


def _target(archive: _Archive, link: tarfile.TarInfo, name: str) -> ByteRange | None:
    """Return the byte range of a link's target, or `None` if it is not known (yet)."""
    target = link.linkname.replace("\\", "/")
    if link.issym() and not target.startswith("/"):
        target = posixpath.join(posixpath.dirname(name), target)
    target = posixpath.normpath(target.lstrip("/"))
    byte_range = archive.byte_ranges.get(target)
    if byte_range is None:
        archive.unresolved_links.add(target)
    else:
        archive.links += 1
    return byte_range


def _add_member(
    sample: Sample, endings: str, member: tarfile.TarInfo, byte_range: ByteRange | None, archive: _Archive
) -> None:
    """Add a member to its sample."""
    ending = endings.rpartition(".")[2]
    is_picture = ending in IMAGE_ENDINGS or ending in UNREADABLE_ENDINGS
    if not is_picture and ending not in (*_TEXTS, *_LABELS, "json"):
        return
    if byte_range is None:
        sample.problem = (
            "unsafe-member",
            f"{ending}: a link to {member.linkname[:100]!a}, which is no member of the archive; write the files "
            "themselves (tar --dereference)",
        )
        return
    if is_picture:
        sample.pictures.append((endings, byte_range))
        return
    start, length = byte_range
    most = MAX_LINE if member.isreg() else _LINKED_TEXT
    if length > most:
        sample.problem = ("bad-row", f"{ending} of {length:,} bytes; at most {most:,} are read")
        return
    archive.file.seek(start)
    data = archive.file.read(length)
    if len(data) < length:
        sample.problem = ("bad-row", f"{ending} ends early")
    elif ending == "json":
        found = _fields(data)
        if isinstance(found, dict):
            sample.cells.update({name: v for name, v in found.items() if name != "__key__"})
        else:
            sample.problem = found
    else:
        try:
            sample.cells[f".{endings}" if "." in endings else ending] = (
                decoded(f".{ending}", data, archive.encoding).strip() or None
            )
        except DataError as error:
            sample.problem = ("bad-utf8", str(error))


def _fields(data: bytes) -> dict[str, Any] | tuple[str, str]:
    """Return the fields of a JSON member, or (reason, detail); a list of texts is a list of captions."""
    found = parsed(data)
    if isinstance(found, tuple) and data.lstrip()[:1] == b"[":
        try:
            texts = json.loads(data)
        except (ValueError, RecursionError):
            return found
        if texts and all(isinstance(text, str) for text in texts):
            return parsed(json.dumps({"caption": texts}).encode())
    return found


def _unsafe(member: tarfile.TarInfo, name: str) -> str | None:
    """Return why a member may not be read, or `None`; `name` has slashes, but no leading one."""
    if member.isdev():
        return "a device"
    if member.issparse():
        return "a sparse file"
    if ".." in name.split("/"):
        return "a path that leaves the archive"
    if any("\ud800" <= c <= "\udfff" for c in member.name):
        return "a name that is not UTF-8"
    return None
