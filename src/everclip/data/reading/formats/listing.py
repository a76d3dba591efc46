"""List the images, tables, other files and folders in a folder, without files left by systems and programs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from everclip.data.reading.formats.raw import IMAGE_ENDINGS, UNREADABLE_ENDINGS
from everclip.data.reading.formats.system_files import (
    brief,
    is_system_file,
    is_system_folder,
    system_files_note,
)
from everclip.errors import DataError

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar", ".gz")
"""Endings of files that must be unpacked before they can be read."""

_HOLDING = (*IMAGE_ENDINGS, *UNREADABLE_ENDINGS, "tar", "parquet")
_MOST_FOLDERS = 20_000
"""Folders that are searched for a first image."""


@dataclass
class Listing:
    """A folder, listed once.

    Attributes:
        path: the folder.
        folders: the names of its folders, in order.
        files: the names of its files, in order.
        system_files: names of skipped files and folders.
        notes: lines for people; readers add to them.
        mentioned: files that a note already names.
        root: `data.root`; links may lead to files below it.
    """

    path: Path
    folders: list[str]
    files: list[str]
    system_files: list[str]
    notes: list[str] = field(default_factory=list)
    mentioned: set[str] = field(default_factory=set)
    root: Path | None = None

    @cached_property
    def pictures(self) -> list[str]:
        """The names of the images in the folder itself."""
        return [name for name in self.files if ending_of(name) in IMAGE_ENDINGS]

    @cached_property
    def filled(self) -> list[str]:
        """The folders with an image or an archive at any depth."""
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
    system_files: list[str] = []
    for name in names:
        is_folder = os.path.isdir(path / name)
        if is_system_folder(name) if is_folder else is_system_file(name):
            system_files.append(name)
        else:
            (folders if is_folder else files).append(name)
    return Listing(path, folders, files, system_files, system_files_note(path.name, system_files))


def ending_of(name: str) -> str:
    """Return the ending of a name in lower case, without its dot."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def holds_samples(folder: Path) -> bool:
    """Whether an image or an archive is below a folder; links to folders are not followed."""
    for number, (_, inner, files) in enumerate(os.walk(folder)):
        if any(ending_of(name) in _HOLDING and not is_system_file(name) for name in files):
            return True
        if number > _MOST_FOLDERS:
            return True  # so many folders probably hold data; reading will tell
        inner[:] = sorted(name for name in inner if not is_system_folder(name))
    return False


def pictures_below(folder: Path) -> Iterator[str]:
    """Yield the relative paths (with `/`) of all images below a folder, sorted by folder."""
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not is_system_folder(name))
        start = os.path.relpath(place, folder)
        for name in sorted(files):
            if ending_of(name) in IMAGE_ENDINGS and not is_system_file(name):
                yield name if start == "." else f"{start}/{name}"


def others_note(listing: Listing, read: list[str]) -> list[str]:
    """Return lines that name unread files of a folder, and archives with their remedy."""
    packed = [name for name in listing.files if name.lower().endswith(ARCHIVES)]
    left = [
        name
        for name in listing.files
        if name not in read
        and name not in listing.mentioned
        and name not in packed
        and ending_of(name) not in (*IMAGE_ENDINGS, *UNREADABLE_ENDINGS)
    ]
    notes = []
    if packed:
        notes.append(
            f"{listing.path.name}: compressed files, ignored: {len(packed):,} ({brief(packed)}); unpack what "
            "belongs to the data"
        )
    if left:
        notes.append(f"{listing.path.name}{_NOT_READ}{len(left):,} ({brief(left)})")
    return notes


_NOT_READ = ": files beside the data, not read: "


def notes_without(notes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the notes without files that were read after all."""
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
