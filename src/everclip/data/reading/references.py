"""Locate the image of each row from bytes, a path or a URL, inside the allowed folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from everclip.data.pictures.location import LOCATION, is_location, locations
from everclip.data.reading.formats.raw import IMAGE_ENDINGS
from everclip.data.reading.path_matching import PathMatcher, is_absolute, uploaded
from everclip.errors import DataError

Problem = tuple[int, str, str]
"""Position, reason, detail."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HASHES = ("md5", "sha1", "sha256")


class Resolver:
    """Finds the files that paths and URLs point to.

    Args:
        root: folder that paths are relative to and may not leave; `None` if the caller names the files directly.
        downloads: folder with the files of URLs, or `None`.
        targets: a further folder that links inside the root may lead to.
    """

    def __init__(self, root: Path | None, downloads: Path | None, targets: Path | None = None) -> None:
        self._root = None if root is None else Path(os.path.realpath(root))
        self._downloads = downloads
        self._targets = None if targets is None else os.path.realpath(targets)
        self._near = None if self._root is None else PathMatcher(str(self._root))
        self._last_parts: Counter[str] = Counter()

    def notes(self) -> list[str]:
        """Return lines about corrected paths."""
        return [] if self._near is None else self._near.notes()

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """Names of the downloaded files, with and without ending, to their paths."""
        assert self._downloads is not None
        found: dict[str, list[str]] = {}
        for place, _, names in os.walk(self._downloads):
            for name in names:
                for key in {name, name.rpartition(".")[0] or name}:
                    found.setdefault(key, []).append(os.path.join(place, name))
        return found

    def learn(self, values: Iterable[str | None]) -> None:
        """Register all values of a table before the first is resolved: a named file is not used for another value."""
        given = dict.fromkeys(value for value in values if value is not None)
        self._last_parts.update(_last(value) for value in given if _is_url(value))
        if self._near is not None:
            named = dict.fromkeys(_local(value) for value in given if not _is_url(value))
            self._near.learn(named, [v for v in named if is_absolute(v) and not self._is_inside(v)])

    def resolve(self, values: Sequence[str | None]) -> tuple[list[str | None], list[Problem]]:
        """Return the file of every value, and a problem for each value without a file."""
        paths: list[str | None] = []
        problems: list[Problem] = []
        for position, value in enumerate(values):
            if value is None or not value.strip():
                found: str | tuple[str, str] = ("no-image", "the cell is empty")
            elif _is_url(value):
                found = self._download(value, self._last_parts[_last(value)])
            else:
                found = self._file(value)
            paths.append(found if isinstance(found, str) else None)
            if isinstance(found, tuple):
                problems.append((position, *found))
        return paths, problems

    def _is_inside(self, path: str) -> bool:
        if self._root is None or Path(path).is_relative_to(self._root):
            return True
        return self._targets is not None and Path(path).is_relative_to(self._targets)

    def _file(self, value: str) -> str | tuple[str, str]:
        path = _local(value)
        if "\0" in path:
            return "outside-root", f"{value[:80]!a} is no path"
        if self._near is not None and is_absolute(path):
            path = self._near.relative(path) or uploaded(path) or path
        try:
            found = self._real(path, value)
            if isinstance(found, tuple) and found[0] == "missing-file" and self._near is not None:
                other = self._near.find(path)
                if other is not None:
                    return self._real(other, value)
                return "missing-file", found[1] + self._near.hint(path)
            return found
        except UnicodeEncodeError:
            return "bad-utf8", f"{value[:200]!a}: the path is not UTF-8"
        except (OSError, ValueError) as error:
            return "unreadable-file", f"{value[:80]!r} ({error})"

    def _real(self, path: str, value: str) -> str | tuple[str, str]:
        """Return the file of a path with all links resolved, or (reason, detail)."""
        if self._root is not None and is_absolute(path) and not os.path.isabs(path):
            return (
                "outside-root",
                f"{value[:200]!r} is a path of another machine; its files are not below {self._root}",
            )
        real = os.path.realpath(
            os.path.join(self._root or "", os.path.expanduser(path) if self._root is None else path)
        )
        real.encode()
        if not self._is_inside(real):
            return "outside-root", f"{value[:200]!r} leaves {self._root}{self._way_out(path, real)}"
        if not os.path.isfile(real):
            return "missing-file", f"{value[:200]!r} (looked for {real[:300]})"
        return real

    def _way_out(self, path: str, real: str) -> str:
        """Return how a path leaves the folder, and the remedy if the file exists."""
        by_link = not is_absolute(path) and ".." not in Path(path).parts
        if by_link and not os.path.exists(real):
            return f": a link leads to {real[:120]}, where nothing is; mend or remove the link"
        if not os.path.isfile(real):
            return ""
        if by_link:
            return (
                f": a link leads to {real[:120]}; say data.root={os.path.dirname(real)[:120]} or a folder above it, or "
                "copy the data with what links lead to (cp -rL)"
            )
        folder = (
            self._near.outside_folder
            if self._near is not None and self._near.outside_folder
            else os.path.dirname(real)
        )
        return f"; the file is there: say data.root={folder}"

    def _download(self, url: str, same: int) -> str | tuple[str, str]:
        """Find the file of a URL: by a hash of the URL as its name, then by the URL's last part."""
        if self._downloads is None:
            return "not-downloaded", f"{url[:200]} (set data.downloads to the folder of downloaded files)"
        for kind in _HASHES:
            name = hashlib.new(kind, url.encode(), usedforsecurity=False).hexdigest()
            if name in self._files:
                return self._inside(self._files[name], url)
        name = _last(url)
        if not name or name not in self._files:
            return (
                "not-downloaded",
                f"{url[:200]} (no file {name!r}, nor one named by the URL's md5, sha1 or sha256)",
            )
        if same > 1:
            return "not-downloaded", f"{same} URLs end in {name!r}; name the files by the md5 of their URL"
        return self._inside(self._files[name], url)

    def _inside(self, found: list[str], url: str) -> str | tuple[str, str]:
        if len(found) > 1:
            return "not-downloaded", f"{url[:200]}: several files could be meant ({found[0]}, {found[1]})"
        real = os.path.realpath(found[0])
        if not Path(real).is_relative_to(os.path.realpath(str(self._downloads))):
            return "outside-root", f"{found[0]} is a link that leaves {self._downloads}"
        return real


def _is_url(value: str) -> bool:
    return _URL.match(value) is not None and not value.lower().startswith("file:")


def _local(value: str) -> str:
    """Return the path of a `file:` URL; other values as they are."""
    if not value.lower().startswith("file:/"):
        return value
    path = _url_path(value)
    return path[1:] if re.match(r"/[A-Za-z]:/", path) else path


def _last(url: str) -> str:
    return _url_path(url).rpartition("/")[2]


def _url_path(url: str) -> str:
    """Return the path of a URL, or an empty text for an invalid URL (`http://[`)."""
    try:
        return unquote(urlsplit(url).path)
    except ValueError:
        return ""


def image_locations(
    column: pa.ChunkedArray, resolver: Resolver, name: str
) -> tuple[pa.ChunkedArray, list[Problem]]:
    """Return a column of images as `LOCATION`, and the rows whose image does not exist.

    Args:
        column: bytes, paths or URLs, structs of `bytes` and `path` (as `datasets` writes them), or `LOCATION` already.
        resolver: finds files.
        name: shown in errors.

    Raises:
        DataError: if the column cannot hold images.
    """
    chunks: list[pa.Array] = []
    problems: list[Problem] = []
    start = 0
    resolver.learn(path for chunk in column.chunks for path in _paths_of(chunk))
    for chunk in column.chunks:
        made, found = _chunk(chunk, resolver, name)
        chunks.append(made)
        problems += [(start + position, reason, detail) for position, reason, detail in found]
        start += len(chunk)
    return pa.chunked_array(chunks, LOCATION), problems


def _paths_of(chunk: pa.Array) -> list[str | None]:
    """Return the paths and URLs in a chunk of a column; nothing for other types."""
    kind = chunk.type
    if pa.types.is_struct(kind) and not is_location(kind):
        fields = dict(zip((field.name for field in kind), chunk.flatten(), strict=True))
        if "path" not in fields or "bytes" not in fields:
            return []
        return _paths_of(fields["path"].filter(fields["bytes"].is_null()))
    if pa.types.is_integer(kind):
        return _paths_of(chunk.cast(pa.string()))
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    found: list[str | None] = chunk.to_pylist() if texts else []
    return found


def _chunk(chunk: pa.Array, resolver: Resolver, name: str) -> tuple[pa.Array, list[Problem]]:
    kind = chunk.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        chunk = _only_ones(chunk, name)
        kind = chunk.type
    if is_location(kind):
        return chunk, _missing(chunk.field("bytes").is_null(), chunk.field("path").is_null())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        data = chunk.cast(pa.binary())
        return locations(len(chunk), data), _missing(data.is_null(), data.is_null())
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") < 0 and kind.get_field_index("path") >= 0:
        chunk = chunk.field("path")
        kind = chunk.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        fields = dict(zip((field.name for field in kind), chunk.flatten(), strict=True))
        data = fields["bytes"].cast(pa.binary())
        held = data.is_valid().to_pylist()
        named: list[Any] = fields["path"].to_pylist() if "path" in fields else [None] * len(chunk)
        wanted = [i for i, has in enumerate(held) if not has]
        files, problems = resolver.resolve([named[i] for i in wanted])
        paths: list[str | None] = [None] * len(chunk)
        for i, file in zip(wanted, files, strict=True):
            paths[i] = file
        return locations(len(chunk), data, paths), [
            (wanted[i], reason, detail) for i, reason, detail in problems
        ]
    if pa.types.is_integer(kind):
        chunk, kind = chunk.cast(pa.string()), pa.string()  # files whose names are numbers
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        files, problems = resolver.resolve(chunk.to_pylist())
        return locations(len(chunk), paths=files), problems
    raise DataError(
        f"{name}: the column of images holds {kind}; expected encoded bytes, paths ({', '.join(IMAGE_ENDINGS[:4])}"
        "...) or URLs of downloaded files. Name another with data.columns.image=NAME."
    )


def _only_ones(chunk: pa.Array, name: str) -> pa.Array:
    """Return the single image of each list.

    Raises:
        DataError: for a row with several images.
    """
    lengths = chunk.value_lengths().to_pylist()
    most = max((length for length in lengths if length is not None), default=0)
    if most > 1:
        raise DataError(
            f"{name}: the column of images holds lists of up to {most} images; expected one image per row. "
            "Write a row for each, or name another column with data.columns.image=NAME."
        )
    return pa.array([given[0] if given else None for given in chunk.to_pylist()], chunk.type.value_type)


def _missing(*nulls: pa.Array) -> list[Problem]:
    empty = nulls[0].to_pylist()
    for more in nulls[1:]:
        empty = [a and b for a, b in zip(empty, more.to_pylist(), strict=True)]
    return [(i, "no-image", "the cell is empty") for i, none in enumerate(empty) if none]
