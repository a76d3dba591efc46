"""What a folder holds: pictures, tables, other files and folders, without what systems and programs leave there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from everclip.data.reading.formats.foreign import foreign_note, is_foreign_file, is_foreign_folder, some
from everclip.data.reading.formats.raw import FOREIGN_ENDINGS, IMAGE_ENDINGS
from everclip.errors import DataError

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar", ".gz")
"""Endings of files that must be unpacked before they can be read."""

_HOLDING = (*IMAGE_ENDINGS, *FOREIGN_ENDINGS, "tar", "parquet")
_MOST_FOLDERS = 20_000
"""Folders that are looked into for a first picture."""


@dataclass
class Listing:
    """A folder, listed once.

    Attributes:
        path: the folder.
        folders: the names of its folders, in order.
        files: the names of its files, in order.
        foreign: what was passed over.
        notes: lines for people; readers add to them.
        mentioned: files that a note names already.
        root: the folder that the user says; links may lead to what lies below it.
    """

    path: Path
    folders: list[str]
    files: list[str]
    foreign: list[str]
    notes: list[str] = field(default_factory=list)
    mentioned: set[str] = field(default_factory=set)
    root: Path | None = None

    @cached_property
    def pictures(self) -> list[str]:
        """The names of the pictures that lie in the folder itself."""
        return [name for name in self.files if ending_of(name) in IMAGE_ENDINGS]

    @cached_property
    def filled(self) -> list[str]:
        """The folders that hold a picture or an archive, at any depth."""
        return [name for name in self.folders if holds_samples(self.path / name)]

    def of_endings(self, *endings: str) -> list[str]:
        """Return the files with one of these endings (`.csv`), in order."""
        return [name for name in self.files if Path(name).suffix.lower() in endings]


def listed(path: Path) -> Listing:
    """List a folder.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    folders: list[str] = []
    files: list[str] = []
    foreign: list[str] = []
    for name in names:
        is_folder = os.path.isdir(path / name)
        if is_foreign_folder(name) if is_folder else is_foreign_file(name):
            foreign.append(name)
        else:
            (folders if is_folder else files).append(name)
    return Listing(path, folders, files, foreign, foreign_note(path.name, foreign))


def ending_of(name: str) -> str:
    """Return the ending of a name in small letters, without its dot."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def holds_samples(folder: Path) -> bool:
    """Whether a picture or an archive lies below a folder; links to folders are not followed."""
    for number, (_, inner, files) in enumerate(os.walk(folder)):
        if any(ending_of(name) in _HOLDING and not is_foreign_file(name) for name in files):
            return True
        if number > _MOST_FOLDERS:
            return True  # so many folders are no accident; reading them says what they hold
        inner[:] = sorted(name for name in inner if not is_foreign_folder(name))
    return False


def pictures_below(folder: Path) -> Iterator[str]:
    """Yield the paths of all pictures below a folder, from it and with `/`, in order of their folders."""
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not is_foreign_folder(name))
        start = os.path.relpath(place, folder)
        for name in sorted(files):
            if ending_of(name) in IMAGE_ENDINGS and not is_foreign_file(name):
                yield name if start == "." else f"{start}/{name}"


def others_note(listing: Listing, read: list[str]) -> list[str]:
    """Name the files of a folder that are neither pictures nor read; archives with what to do about them."""
    packed = [name for name in listing.files if name.lower().endswith(ARCHIVES)]
    left = [
        name
        for name in listing.files
        if name not in read
        and name not in listing.mentioned
        and name not in packed
        and ending_of(name) not in (*IMAGE_ENDINGS, *FOREIGN_ENDINGS)
    ]
    notes = []
    if packed:
        notes.append(
            f"{listing.path.name}: passed over, since compressed: {len(packed):,} ({some(packed)}); unpack what "
            "belongs to the data"
        )
    if left:
        notes.append(f"{listing.path.name}{_NOT_READ}{len(left):,} ({some(left)})")
    return notes


_NOT_READ = ": files beside the data, not read: "


def notes_without(notes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return notes in which files that were read after all are not among those that were not read."""
    kept = []
    for note in notes:
        start, said, rest = note.partition(_NOT_READ)
        found = re.fullmatch(r"([\d,]+) \((.*?)( and [\d,]+ more)?\)", rest) if said else None
        if found is None:
            kept.append(note)
            continue
        shown = [name for name in found.group(2).split(", ") if name not in names]
        count = int(found.group(1).replace(",", "")) - (len(found.group(2).split(", ")) - len(shown))
        if shown:
            kept.append(f"{start}{_NOT_READ}{count:,} ({', '.join(shown)}{found.group(3) or ''})")
    return kept
