"""WebDataset shards: `.tar` archives whose members share a key, pictures found again by their place in the file.

Read by the standard library's headers, not through `datasets`: that would copy every picture and give up the whole
archive for one damaged member. Nothing is ever unpacked, so that a name of a member is only a name.
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

from everclip.data.pictures.location import places
from everclip.data.reading.formats.archive import is_ended, members
from everclip.data.reading.formats.foreign import foreign_note, is_foreign_file, is_foreign_path, some
from everclip.data.reading.formats.jsonl import MAX_LINE, parsed
from everclip.data.reading.formats.pairs import lines_of, uniform
from everclip.data.reading.formats.raw import FOREIGN_ENDINGS, IMAGE_ENDINGS, Raw, table_of
from everclip.data.reading.formats.shard_samples import Place, Sample, joined, name_parts
from everclip.data.reading.formats.text_file import decoded
from everclip.data.reading.quarantine import DAMAGED, Entry
from everclip.errors import DataError

_TEXTS = ("txt", "text", "caption")
_LABELS = ("cls", "class", "label")
_LINKED_TEXT = 4096  # bytes: any number of links may lead to one text


@dataclass
class _Archive:
    """An archive, and what its members were found to be.

    Attributes:
        path: its file.
        file: the same, open.
        encoding: of the texts, as the user says.
        at_last_dot: whether a key ends at the last dot of a name, instead of the first.
        places: where the bytes of each member stand, for links to it.
        waiting: names that links lead to, of members that do not stand before the link.
        broken: members that cannot be used.
        foreign: names of members that systems leave.
        links: links that were followed to a member.
        rooted: members whose names begin with a slash, or have backslashes.
    """

    path: Path
    file: BinaryIO
    encoding: str | None = None
    at_last_dot: bool = False
    places: dict[str, Place] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    broken: list[Entry] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    links: int = 0
    rooted: int = 0

    def again(self, at_last_dot: bool = False) -> _Archive:
        """Return the archive to be read anew, with what links need."""
        return replace(self, at_last_dot=at_last_dot, waiting=set(), broken=[], foreign=[], links=0, rooted=0)

    def notes(self) -> list[str]:
        """Return lines for people about names that are read otherwise than they stand."""
        name, notes = self.path.name, []
        if self.links:
            notes.append(f"{name}: {self.links:,} links lead to members of the archive; these are read")
        if self.rooted:
            notes.append(
                f"{name}: {self.rooted:,} names are read as paths inside the archive, with / between"
            )
        if self.at_last_dot:
            notes.append(
                f"{name}: names hold dots, so a key ends at the last dot of a name, not at the first"
            )
        return notes + foreign_note(name, self.foreign)


def read_shard(path: Path, encoding: str | None = None) -> Raw:
    """Read a `.tar` archive.

    Members of one key are one sample: a picture, its caption (`.txt`; several lines are several captions), its class
    (`.cls`), and the fields of `.json` (a list of texts: captions).

    Args:
        path: the archive.
        encoding: of the texts, as the user says; `None`: UTF-8, or what their first bytes say.

    Raises:
        DataError: if the file is no archive.
    """
    with open(path, "rb") as file:
        archive, found = _read(_Archive(path, file, encoding))
        ended = is_ended(file)
    found, notes = joined(path.name, found)
    notes += name_parts(path.name, found)
    size = path.stat().st_size
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
    notes += archive.notes() + _captions_by_line(path, samples) + _beside(path, samples)
    names = dict.fromkeys(name for sample in samples for name in sample.cells if name != "image")
    columns, odd = table_of(
        (sample.cells for sample in samples), ["__key__", *(n for n in names if n != "__key__")]
    )
    chosen = [sample.picture() for sample in samples]
    images = places(
        len(chosen),
        paths=[None if one is None else os.path.realpath(path) for one in chosen],
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
    """Return the samples; read again where links lead onwards, or where keys that end at the first dot collide."""
    found = list(_samples(archive))
    if archive.waiting & archive.places.keys():
        archive = archive.again()
        found = list(_samples(archive))
    if any(sample.pictures and sample.picture() is None for sample in found):
        tried, other = archive.again(at_last_dot=True), archive.again(at_last_dot=True)
        if all(sample.is_complete() for sample in joined("", list(_samples(tried)))[0]):
            return other, list(_samples(other))
    return archive, found


def _captions_by_line(path: Path, samples: Sequence[Sample]) -> list[str]:
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


def _beside(path: Path, samples: Sequence[Sample]) -> list[str]:
    """Return lines about pictures beside the samples' own, and about folders where nothing says what is shown."""
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
            f"{path.name}: pictures beside those of a plain ending, not read: {passed.total():,} ({listed})"
        )
    if samples and all(len(sample.cells) == 1 for sample in samples):
        folders = sorted({posixpath.dirname(sample.key) for sample in samples} - {""})
        if len(folders) > 1:
            notes.append(
                f"{path.name}: no member is a text or a class, and the pictures lie in {len(folders):,} folders "
                f"({some(folders)}); if these are classes: unpack the archive and give its folder as data"
            )
    return notes


def _samples(archive: _Archive) -> Iterator[Sample]:
    """Yield the samples of an archive: what stands next to each other under one key."""
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
        if is_foreign_file(base) or is_foreign_path(name):
            archive.foreign.append(base)
            continue
        archive.rooted += name != member.name
        stem, _, ending = base.rpartition(".") if archive.at_last_dot else base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if current is None or current.key != key:
            if current is not None:
                yield current
            number += 1
            current = Sample(key, number, {"__key__": key})
        place = _target(archive, member, name) if link else (member.offset_data, member.size)
        if place is not None:
            archive.places[posixpath.normpath(name)] = place
        _take(current, ending.lower(), member, place, archive)
    if current is not None:
        yield current


def _target(archive: _Archive, link: tarfile.TarInfo, name: str) -> Place | None:
    """Return where the member stands that a link leads to, or `None` where none is known (yet)."""
    target = link.linkname.replace("\\", "/")
    if link.issym() and not target.startswith("/"):
        target = posixpath.join(posixpath.dirname(name), target)
    target = posixpath.normpath(target.lstrip("/"))
    place = archive.places.get(target)
    if place is None:
        archive.waiting.add(target)
    else:
        archive.links += 1
    return place


def _take(
    sample: Sample, endings: str, member: tarfile.TarInfo, place: Place | None, archive: _Archive
) -> None:
    """Add a member to its sample."""
    ending = endings.rpartition(".")[2]
    is_picture = ending in IMAGE_ENDINGS or ending in FOREIGN_ENDINGS
    if not is_picture and ending not in (*_TEXTS, *_LABELS, "json"):
        return
    if place is None:
        sample.problem = (
            "unsafe-member",
            f"{ending}: a link to {member.linkname[:100]!a}, which is no member of the archive; write the files "
            "themselves (tar --dereference)",
        )
        return
    if is_picture:
        sample.pictures.append((endings, place))
        return
    start, length = place
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
    """Return the fields that a JSON holds, or (reason, detail); a list of texts is a list of captions."""
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
    """Return why a member may not be read, or `None`; `name` has slashes, and none at its beginning."""
    if member.isdev():
        return "a device"
    if member.issparse():
        return "a sparse file"
    if ".." in name.split("/"):
        return "a path that leaves the archive"
    if any("\ud800" <= c <= "\udfff" for c in member.name):
        return "a name that is not UTF-8"
    return None
