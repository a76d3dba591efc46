"""Find the folder that the paths of a table start from: the table's folder, or one below or beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

SAMPLE = 200
"""Number of paths that are tested in every folder."""

_MOST_FOLDERS = 1000
_DEPTH = 2
BESIDE = frozenset(
    (
        "annotations",
        "annotation",
        "anns",
        "labels",
        "captions",
        "imagesets",
        "lists",
        "list",
        "metadata",
        "meta",
        "splits",
        "karpathy",
        "json",
        "csv",
    )
)
"""Folders of tables whose images are in a folder beside them, as in COCO."""


def picture_folder(start: Path, paths: Sequence[str]) -> tuple[Path, str | None]:
    """Return the folder that paths start from, and a line for people if it is not `start`.

    Another folder is chosen only if `start` holds none of the files, and exactly one folder holds most of them.

    Args:
        start: the table's folder.
        paths: some of the table's relative paths.
    """
    wanted = [path.replace("\\", "/").strip() for path in paths]
    if not wanted or _count_files(start, wanted):
        return start, None
    counts = {folder: _count_files(folder, wanted) for folder in _candidates(start, wanted)}
    best = max(counts.values(), default=0)
    found = [folder for folder, count in counts.items() if count == best]
    if best * 2 <= len(wanted):
        return start, None
    shown = [os.path.relpath(folder, start) for folder in found]
    if len(found) > 1:
        return start, (
            f"the images are not in {start.name}, but in several folders ({', '.join(shown[:3])}); say which with "
            "data.root=FOLDER"
        )
    return found[0], f"paths start from {shown[0]!r}, where the images are (data.root=FOLDER to change)"


def _count_files(folder: Path, paths: Sequence[str]) -> int:
    """Return how many of the paths are files below a folder."""
    return sum(
        not os.path.isabs(path) and ".." not in Path(path).parts and _is_file(folder / path) for path in paths
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or a NUL in it
        return False


def _candidates(start: Path, paths: Sequence[str]) -> Iterator[Path]:
    left = _MOST_FOLDERS
    tops = [start]
    if start.name.lower() in BESIDE:
        tops.append(start.parent)
        yield start.parent
    elif all(path.startswith(f"{start.name}/") for path in paths):
        yield start.parent  # the paths begin with the name of the table's own folder
    for top in tops:
        for folder in _below(top, _DEPTH):
            if folder == start or (top != start and start in folder.parents):
                continue
            left -= 1
            if left < 0:
                return
            yield folder


def _below(top: Path, depth: int) -> Iterator[Path]:
    """Yield the folders below a folder; skip hidden ones and links."""
    try:
        names = sorted(e.name for e in os.scandir(top) if e.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in names:
        if not name.startswith((".", "@", "__MACOSX")):
            yield top / name
            if depth > 1:
                yield from _below(top / name, depth - 1)
