"""Read folders whose names are classes, and folders of images without labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from everclip.data.reading.formats.listing import Listing, ending_of, listed, others_note
from everclip.data.reading.formats.raw import IMAGE_ENDINGS, UNREADABLE_ENDINGS, Raw
from everclip.data.reading.formats.sides import SWITCH, side_of_name
from everclip.data.reading.formats.system_files import (
    brief,
    is_system_file,
    is_system_folder,
    system_files_note,
)
from everclip.data.reading.quarantine import Entry
from everclip.errors import DataError

_MOST_LINKS = 3  # in one path: folders that link to each other have endless paths


@dataclass
class FolderImages:
    """Images below a folder.

    Attributes:
        path: the folder.
        root: links to folders below it are followed; `None`: no links are followed.
        files: the images' paths from the folder.
        others: counts of other files by ending.
        system_files: names of files left by systems and programs.
        broken: files and folders that cannot be read or named.
    """

    path: Path
    root: Path | None = None
    files: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    system_files: list[str] = field(default_factory=list)
    broken: list[Entry] = field(default_factory=list)

    def take(self, file: Path) -> None:
        """Add a file if it is an image, else count it."""
        ending = ending_of(file.name)
        if is_system_file(file.name):
            self.system_files.append(file.name)
            return
        if ending not in IMAGE_ENDINGS and ending not in UNREADABLE_ENDINGS:
            self.others[f".{ending}" if ending else "no ending"] += 1
            return
        shown = str(file.relative_to(self.path))
        if not shown.isprintable() and any("\ud800" <= c <= "\udfff" for c in shown):
            what = f"{self.path.name}, {shown!a}"
            self.broken.append(Entry(None, what, "bad-utf8", "the file's name is not UTF-8"))
            return
        self.files.append(shown)

    def take_below(self, folder: Path) -> None:
        """Add all images below a folder."""
        for file in self._below(folder):
            self.take(file)

    def notes(self) -> list[str]:
        """Return lines about skipped files."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.others.most_common(5))
        lines = system_files_note(f"{self.path.name}, below", self.system_files)
        if self.others:
            lines.append(f"{self.path.name}: other files, ignored: {self.others.total()} ({kinds})")
        return lines

    def raw(self, columns: dict[str, Sequence[str | None]], notes: list[str]) -> Raw:
        """Return the images as rows with further columns."""
        every = {"image": self.files, **columns}
        return Raw(
            self.path.name,
            pa.table({name: pa.array(values, pa.string()) for name, values in every.items()}),
            None,
            self.broken,
            root=self.path,
            root_fixed=True,
            known={name: name for name in every},
            labels=self.files,
            notes=[*notes, *self.notes()],
        )

    def _below(self, folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
        """Yield the files below a folder in order; `above` are the targets of the links on the path."""
        if folder.is_symlink():
            real = os.path.realpath(folder)
            if not self._may_follow(folder, real) or real in above or len(above) >= _MOST_LINKS:
                self._link(folder, real)
                return
            above |= {real}

        def unreadable(error: OSError) -> None:
            shown = os.path.relpath(str(error.filename), self.path.parent)
            self.broken.append(Entry(None, shown, "unreadable-file", f"the folder: {error.strerror}"))

        for place, inner, files in os.walk(folder, onerror=unreadable):
            inner.sort()
            links = []
            for name in list(inner):
                if is_system_folder(name):
                    inner.remove(name)
                    self.system_files.append(name)
                elif os.path.islink(os.path.join(place, name)):
                    inner.remove(name)
                    links.append(Path(place, name))
            for name in sorted(files):
                yield Path(place, name)
            for link in links:
                yield from self._below(link, above)

    def _may_follow(self, link: Path, real: str) -> bool:
        """Whether a link leads below the user's root, and not to a folder that contains the link."""
        if self.root is None or not Path(real).is_relative_to(os.path.realpath(self.root)):
            return False
        return not _leads_up(link, real)

    def _link(self, link: Path, real: str) -> None:
        shown = os.path.relpath(link, self.path.parent)
        if _leads_up(link, real):
            self.broken.append(
                Entry(None, shown, "outside-root", "a link to a folder above it; remove the link")
            )
            return
        self.broken.append(
            Entry(
                None,
                shown,
                "outside-root",
                f"a link to the folder {real[:120]}, which is not followed; say data.root=FOLDER, a folder that holds "
                "the target, or copy the data with what links lead to (cp -rL)",
            )
        )


def _leads_up(link: Path, real: str) -> bool:
    """Whether a link leads to a folder that contains it."""
    return Path(os.path.realpath(link.parent)).is_relative_to(real)


def _without_ending(listing: Listing) -> str:
    """Return a sentence about images without an ending, if a folder begins with one."""
    for name in listing.folders[:5]:
        for file in listed(listing.path / name).files[:5]:
            with open(listing.path / name / file, "rb") as held:
                start = held.read(8)
            if "." not in file and start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n")):
                kind = "jpg" if start[0] == 0xFF else "png"
                return (
                    f" {name}/{file} is an image without an ending: give such files one (.{kind}), or name them in a "
                    "table with the columns `image` and `label`."
                )
    return ""


def read_class_folders(listing: Listing) -> Raw:
    """Read a folder of class folders.

    If all classes hold folders named after sides (`cat/train`), these are the sides. If all folders hold the same inner
    folders (`photo/cat`, `sketch/cat`), the inner ones are the classes and the outer ones the column `domain`.

    Raises:
        DataError: if none of the folders holds an image.
    """
    found = FolderImages(listing.path, listing.root)
    for name in listing.folders:
        found.take_below(listing.path / name)
    if not found.files and not found.broken:
        raise DataError(
            f"{listing.path}: none of its {len(listing.folders)} folders holds an image ({', '.join(IMAGE_ENDINGS)})."
            + _without_ending(listing)
            + "".join(f" {note}." for note in others_note(listing, []))
        )
    parts = [tuple(file.split(os.sep)) for file in found.files]
    columns, notes = _columns(listing.path.name, parts)
    tops = {part[0] for part in parts}
    empty = [name for name in listing.folders if name not in tops]
    if empty:
        notes.append(
            f"{listing.path.name}: folders without an image, ignored: {len(empty):,} ({brief(empty)})"
        )
    return found.raw(columns, [*notes, *listing.notes, *_loose(listing, "class")])


def _columns(
    name: str, parts: Sequence[tuple[str, ...]]
) -> tuple[dict[str, Sequence[str | None]], list[str]]:
    """Return the columns that the folder names give, and lines about them."""
    inner: dict[str, set[str]] = {}
    for part in parts:
        inner.setdefault(part[0], set()).update(part[1:2] if len(part) > 2 else ())
    outer = sorted(inner)
    deep = bool(parts) and all(len(part) > 2 for part in parts)
    every = set[str]().union(*inner.values())
    said = f"{name}: classes are the names of the {len(outer)} folders"
    if deep and len({side_of_name(found) for found in every}) > 1 and all(map(side_of_name, every)):
        sides = ", ".join(f"{found}: {side_of_name(found)}" for found in sorted(every))
        return (
            {"class_name": [part[0] for part in parts], "split": [side_of_name(part[1]) for part in parts]},
            [said, f"{name}: sides are the names of the folders inside ({sides}; {SWITCH})"],
        )
    common = set[str].intersection(*inner.values()) if inner else set()
    if deep and len(outer) > 1 and len(common) > 1 and 2 * len(common) >= len(every):
        return (
            {"class_name": [part[1] for part in parts], "domain": [part[0] for part in parts]},
            [
                f"{name}: the folders {brief(outer)} hold folders of the same names: classes are the {len(every)} "
                "inner names, and the column `domain` holds the outer ones"
            ],
        )
    if deep and every:
        said += f"; their inner folders ({brief(sorted(every))}) are not classes"
    return {"class_name": [part[0] for part in parts]}, [said]


def _loose(listing: Listing, what: str) -> list[str]:
    """Return lines about images and files beside the folders."""
    count = len(listing.pictures)
    lines = (
        [
            f"{listing.path.name}: images beside the folders, ignored, since no folder names their {what}: {count}"
        ]
        if count
        else []
    )
    return lines + others_note(listing, [])


def beside_sides(listing: Listing, read: Sequence[str]) -> list[str]:
    """Return lines about images, files and unread folders beside the folders of sides."""
    filled = [name for name in listing.filled if name not in read]
    empty = [name for name in listing.folders if name not in read and name not in filled]
    lines = _loose(listing, "split")
    if filled:
        lines.append(
            f"{listing.path.name}: folders beside the sides, not read: {len(filled):,} ({brief(filled)})"
        )
    if empty:
        lines.append(
            f"{listing.path.name}: folders without an image, ignored: {len(empty):,} ({brief(empty)})"
        )
    return listing.notes + lines


def read_every(listing: Listing) -> Raw:
    """Read all images in and below a folder, without classes."""
    found = FolderImages(listing.path, listing.root)
    for name in listing.files:
        found.take(listing.path / name)
    for name in listing.folders:
        found.take_below(listing.path / name)
    return found.raw({}, listing.notes)


def read_bare(listing: Listing, unlabelled: str) -> Raw:
    """Read a folder of images without labels; `unlabelled` is the error if labels are needed."""
    found = FolderImages(listing.path, listing.root)
    for name in listing.files:
        found.take(listing.path / name)
    return replace(found.raw({}, listing.notes), unlabelled=unlabelled)
