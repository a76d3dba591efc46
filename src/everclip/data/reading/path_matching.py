"""Match paths of a table to files: slashes, Unicode form, letter case, ending or folder may differ."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from urllib.parse import unquote

from everclip.data.reading.formats.listing import ARCHIVES, ending_of
from everclip.data.reading.formats.raw import IMAGE_ENDINGS

_MOST_FILES = 1_000_000
_SAMPLE = 500
_MOST_DIGITS = 30
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def is_absolute(path: str) -> bool:
    """Whether a path is absolute on any system."""
    return path.startswith("/") or _WINDOWS.match(path) is not None


_UPLOADED = re.compile(r"/data/upload/(?:\d+/)?(.+)")
_UPLOAD_MARK = re.compile(r"(?:^|(?<=/))[0-9a-f]{8}-(?=[^/]+$)")


def uploaded(path: str) -> str | None:
    """Return the file name in a Label Studio path on its server (`/data/upload/1/a.jpg`), or `None`."""
    found = _UPLOADED.fullmatch(path)
    return None if found is None else found.group(1)


def without_mark(path: str) -> str:
    """Return a path without the prefix of eight characters that Label Studio adds to uploaded files."""
    return _UPLOAD_MARK.sub("", path)


class PathMatcher:
    """Finds the file for a path if no file has exactly this path.

    A file is used only if the match is unique: it is the one file that differs from the path only in slashes,
    surrounding blanks, Unicode form, letter case or a missing ending, and no other row names it. Other similar files
    are only hints.

    Args:
        root: folder that paths are relative to.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._named: set[str] = set()
        self._other_prefix: tuple[str, ...] = ()
        self.outside_folder = ""
        """Common folder of the absolute paths that exist on this machine outside the root."""
        self.corrections: Counter[str] = Counter()
        """Number of corrected paths per kind of difference."""
        self.examples: dict[str, str] = {}
        self.too_many_files = False
        """Whether there are too many files to compare all of them."""

    def learn(self, named: Iterable[str], outside: Sequence[str]) -> None:
        """Register the paths of some rows.

        Args:
            named: all of their paths; a file that one path names exactly is not used for another path.
            outside: absolute paths outside the folder, perhaps of another machine with another folder.
        """
        first = not self._named
        self._named.update(named)
        if not self._other_prefix:
            self._learn_prefix(outside or (self._unresolved() if first else []))
        here = [path for path in outside[:: max(1, len(outside) // _SAMPLE)] if os.path.isfile(path)]
        if here and not self.outside_folder:
            self.outside_folder = os.path.commonpath([os.path.dirname(path) for path in here])

    def _unresolved(self) -> list[str]:
        """Return a sample of the relative paths if none of them is a file, else nothing."""
        every = sorted(path for path in self._named if not is_absolute(path))
        some = every[:: max(1, len(every) // _SAMPLE)]
        return [] if any(os.path.isfile(os.path.join(self._root, _slashed(path))) for path in some) else some

    def _learn_prefix(self, paths: Sequence[str]) -> None:
        step = max(1, len(paths) // _SAMPLE)
        parts = [_slashed(path).split("/") for path in paths[::step]]
        common = [
            names[0]
            for names in takewhile(
                lambda names: len(set(names)) == 1, zip(*(p[:-1] for p in parts), strict=False)
            )
        ]
        counts = {
            drop: sum(os.path.isfile(os.path.join(self._root, *p[drop:])) for p in parts)
            for drop in range(1, len(common) + 1)
        }
        drop = max(counts, key=lambda d: (counts[d], -d), default=0)
        if drop and 2 * counts[drop] >= len(parts):
            self._other_prefix = tuple(common[:drop])

    def relative(self, path: str) -> str | None:
        """Return the part of another machine's path below the folder, if the prefix is known."""
        parts = tuple(_slashed(path).split("/"))
        if not self._other_prefix or parts[: len(self._other_prefix)] != self._other_prefix:
            return None
        return "/".join(parts[len(self._other_prefix) :])

    def find(self, path: str) -> str | None:
        """Return the one file that matches a path, relative to the folder, or `None`."""
        for way, other in _forms(path):
            if other != path and os.path.isfile(os.path.join(self._root, other)):
                return self._corrected(way, path, other)
        rest = self.relative(path)
        if rest is not None and os.path.isfile(os.path.join(self._root, rest)):
            return rest
        return self._same_but_for_case(path)

    def _same_but_for_case(self, path: str) -> str | None:
        plain = _slashed(path)
        same = self._by_path.get(_key(plain), [])
        if self.too_many_files:
            return None  # another file may match, too
        if len(same) == 1 and same[0] not in self._named:
            return self._corrected("letter case", path, same[0])
        if not same and not _is_picture(plain):
            bare = [file for file in self._by_stem.get(_key(plain), []) if _is_picture(file)]
            if len(bare) == 1 and bare[0] not in self._named:
                return self._corrected("missing ending", path, bare[0])
        return None

    def _corrected(self, way: str, path: str, found: str) -> str:
        self.corrections[way] += 1
        self.examples.setdefault(way, f"{path[:80]!r} is {found[:80]!r}")
        return found

    def hint(self, path: str) -> str:
        """Return similar files and the remedy for a path without a file; empty if there is none."""
        plain = _slashed(path)
        same = self._by_path.get(_key(plain), [])
        if same:
            return f"; {same[0]!r} is there: it differs in letter case alone, and another row names it or one like it"
        stem = _key(plain.rpartition(".")[0] or plain)
        for file in self._by_stem.get(stem, []):
            if _is_picture(file):
                return f"; {file!r} is there: the ending differs; mend the table"
        number = stem.rpartition("/")[2]
        if (
            not number.startswith("0")
            and number.isdecimal()
            and len(number) < _MOST_DIGITS
            and (longer := self._by_number.get(int(number)))
        ):
            return f"; {longer!r} is there: zeros before the number are lost; mend the table"
        found = self._by_name.get(_key(plain.rpartition("/")[2]), [])
        if len(found) == 1:
            tail = f"/{plain}"
            folder = found[0][: -len(tail)] if f"/{found[0]}".endswith(tail) else ""
            where = (
                f"data.root={os.path.join(self._root, folder)}"
                if folder
                else "mend the table, or say data.root=FOLDER"
            )
            return f"; {found[0]!r} is there, in another folder: {where}"
        if found:
            return (
                f"; {len(found)} files of this name are there, in other folders ({found[0]!r}, {found[1]!r})"
            )
        packed = next((file for file in self._files if file.lower().endswith(ARCHIVES)), None)
        if packed is not None:
            return f"; {packed!r} is there, compressed: unpack it"
        if self._unnamed:
            return f"; {len(self._unnamed):,} images are there that no row names, as {self._unnamed[0]!r}"
        return ""

    def notes(self) -> list[str]:
        """Return lines about corrected paths."""
        lines = [
            f"{count:,} paths are read without regard to {way} ({self.examples[way]})"
            for way, count in self.corrections.items()
        ]
        if self.too_many_files:
            lines.append(
                f"more than {_MOST_FILES:,} files are below {self._root}: paths are not corrected by letter case or a "
                "missing ending"
            )
        if self._other_prefix:
            lines.append(
                f"paths begin with {'/'.join(self._other_prefix) or '/'!r}, of another machine; the rest is read below "
                "the root"
            )
        return lines

    @cached_property
    def _files(self) -> list[str]:
        found = []
        for file in _walk(self._root):
            found.append(file)
            if len(found) >= _MOST_FILES:
                self.too_many_files = True
                break
        return found

    @cached_property
    def _unnamed(self) -> list[str]:
        """Images below the folder that no row names, in any form."""
        named = {_key(_slashed(path)) for path in self._named}
        return [f for f in self._files if _is_picture(f) and _key(f) not in named]

    @cached_property
    def _by_path(self) -> dict[str, list[str]]:
        return _indexed(self._files, lambda file: file)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _indexed(self._files, lambda file: file.rpartition(".")[0] or file)

    @cached_property
    def _by_number(self) -> dict[int, str]:
        stems = ((file, file.rpartition("/")[2].partition(".")[0]) for file in self._files)
        return {
            int(stem): file
            for file, stem in stems
            if stem.startswith("0") and stem.isdecimal() and len(stem) < _MOST_DIGITS
        }

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _indexed(self._files, lambda file: file.rpartition("/")[2])


def _indexed(files: Sequence[str], part: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(_key(part(file)), []).append(file)
    return found


def _walk(root: str) -> Iterator[str]:
    """Yield the files below a folder, relative to it, in order; skip hidden ones and links to folders."""
    for place, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        folder = os.path.relpath(place, root)
        for name in sorted(names):
            if not name.startswith("."):
                yield name if folder == "." else f"{folder}/{name}"


def _forms(path: str) -> Iterator[tuple[str, str]]:
    """Yield (difference, other form) for forms of a path that cannot name another file."""
    yield "blanks around them", path.strip()
    yield "quotes around them", path.strip().strip("'\"`")
    plain = _slashed(path)
    yield "the kind of slash", plain
    for form in ("NFC", "NFD"):
        yield "Unicode form (composed or decomposed signs)", unicodedata.normalize(form, plain)
    yield "the marks of URLs (%20)", unquote(plain)
    yield "Label Studio's mark before the name", without_mark(plain)
    yield "the number behind #", re.sub(r"#\d+$", "", plain)


def _slashed(path: str) -> str:
    """Return a path with forward slashes, without surrounding blanks and leading `./`."""
    plain = path.strip().replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _is_picture(path: str) -> bool:
    return ending_of(path.rpartition("/")[2]) in IMAGE_ENDINGS
