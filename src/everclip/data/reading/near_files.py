"""Files near the one that a row names: the same but for slashes, Unicode form, letter case, ending or folder."""

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
    """Return the name of a file that Label Studio's tables call by the place on its server, or `None`."""
    found = _UPLOADED.fullmatch(path)
    return None if found is None else found.group(1)


def without_mark(path: str) -> str:
    """Return a path without the eight signs that Label Studio puts before the name of an uploaded file."""
    return _UPLOAD_MARK.sub("", path)


class NearFiles:
    """Finds the file that a path means where no file has exactly this path.

    A file is taken only if no other can be meant: it is the one file that differs from the path in slashes, blanks
    around it, Unicode form, letter case or a missing ending, and no other row names it. Other near files are hints.

    Args:
        root: folder that paths are relative to.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._named: set[str] = set()
        self._foreign: tuple[str, ...] = ()
        self.elsewhere = ""
        """The folder that holds the absolute paths that are on this machine, but not below the root."""
        self.taken: Counter[str] = Counter()
        """How many paths were corrected, per kind of difference."""
        self.examples: dict[str, str] = {}
        self.unsearched = False
        """Whether there are too many files for all of them to be compared."""

    def learn(self, named: Iterable[str], foreign: Sequence[str]) -> None:
        """Take the paths of some rows into account.

        Args:
            named: all of their paths; a file that one names exactly is no other's.
            foreign: those that are absolute and not below the folder: perhaps of another machine, where the same
                files lay in another folder.
        """
        first = not self._named
        self._named.update(named)
        if not self._foreign:
            self._learn_prefix(foreign or (self._nowhere() if first else []))
        here = [path for path in foreign[:: max(1, len(foreign) // _SAMPLE)] if os.path.isfile(path)]
        if here and not self.elsewhere:
            self.elsewhere = os.path.commonpath([os.path.dirname(path) for path in here])

    def _nowhere(self) -> list[str]:
        """Return some relative paths, if none of them leads to a file as it stands."""
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
            self._foreign = tuple(common[:drop])

    def relative(self, path: str) -> str | None:
        """Return the part of another machine's path that lies below the folder, if that was learned."""
        parts = tuple(_slashed(path).split("/"))
        if not self._foreign or parts[: len(self._foreign)] != self._foreign:
            return None
        return "/".join(parts[len(self._foreign) :])

    def find(self, path: str) -> str | None:
        """Return the one file that a path means, relative to the folder, or `None`."""
        for way, other in _forms(path):
            if other != path and os.path.isfile(os.path.join(self._root, other)):
                return self._take(way, path, other)
        rest = self.relative(path)
        if rest is not None and os.path.isfile(os.path.join(self._root, rest)):
            return rest
        return self._alike(path)

    def _alike(self, path: str) -> str | None:
        plain = _slashed(path)
        same = self._by_path.get(_key(plain), [])
        if self.unsearched:
            return None  # another file may be meant
        if len(same) == 1 and same[0] not in self._named:
            return self._take("letter case", path, same[0])
        if not same and not _is_picture(plain):
            bare = [file for file in self._by_stem.get(_key(plain), []) if _is_picture(file)]
            if len(bare) == 1 and bare[0] not in self._named:
                return self._take("missing ending", path, bare[0])
        return None

    def _take(self, way: str, path: str, found: str) -> str:
        self.taken[way] += 1
        self.examples.setdefault(way, f"{path[:80]!r} is {found[:80]!r}")
        return found

    def hint(self, path: str) -> str:
        """Return what is there instead of a path, and what to do; empty if nothing near is."""
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
            return f"; {len(self._unnamed):,} pictures are there that no row names, as {self._unnamed[0]!r}"
        return ""

    def notes(self) -> list[str]:
        """Return lines about paths that were corrected."""
        lines = [
            f"{count:,} paths are read without regard to {way} ({self.examples[way]})"
            for way, count in self.taken.items()
        ]
        if self.unsearched:
            lines.append(
                f"more than {_MOST_FILES:,} files are below {self._root}: paths are not corrected by letter case or a "
                "missing ending"
            )
        if self._foreign:
            lines.append(
                f"paths begin with {'/'.join(self._foreign) or '/'!r}, of another machine; the rest is read below the "
                "root"
            )
        return lines

    @cached_property
    def _files(self) -> list[str]:
        found = []
        for file in _walk(self._root):
            found.append(file)
            if len(found) >= _MOST_FILES:
                self.unsearched = True
                break
        return found

    @cached_property
    def _unnamed(self) -> list[str]:
        """Pictures below the folder that no row names, in whichever form."""
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
    """Yield the files below a folder, relative to it, in order; hidden ones and links to folders are passed over."""
    for place, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        folder = os.path.relpath(place, root)
        for name in sorted(names):
            if not name.startswith("."):
                yield name if folder == "." else f"{folder}/{name}"


def _forms(path: str) -> Iterator[tuple[str, str]]:
    """Yield other forms of a path that cannot mean another file."""
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
    """Return a path with slashes, without blanks around it and without `./` before it."""
    plain = path.strip().replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _is_picture(path: str) -> bool:
    return ending_of(path.rpartition("/")[2]) in IMAGE_ENDINGS
