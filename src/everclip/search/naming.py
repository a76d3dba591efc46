"""Names of items that have no id of their own: `photos/red/1.jpg`, below a folder that was indexed.

An absolute path would tell everybody who may search how the folders of this machine are called, and would be another
one after the folder has moved. So an index remembers each folder that images came from under a short name.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from pathlib import PurePath


def name_of(path: str, roots: Mapping[str, str]) -> str | None:
    """Return the name of a file below the innermost folder that holds it; `None` if no folder does.

    Args:
        path: absolute.
        roots: short name -> absolute folder.
    """
    path = os.path.normpath(path)
    holding = [(folder, name) for name, folder in roots.items() if _holds(folder, path)]
    if not holding:
        return None
    folder, name = max(holding, key=lambda of: len(of[0]))
    return f"{name}/{PurePath(path).relative_to(folder).as_posix()}"


def _holds(folder: str, path: str) -> bool:
    return path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)


def with_roots(paths: Sequence[str], folder: str | None, roots: Mapping[str, str]) -> dict[str, str]:
    """Return folders under short names that hold all files.

    A folder inside one that is there gets no name: a file keeps its name whatever is indexed later.

    Args:
        paths: absolute.
        folder: the absolute folder that the user named; files outside it get the folder that holds all of them.
        roots: short name -> absolute folder, so far.
    """
    found = dict(roots)
    paths = [os.path.normpath(path) for path in paths]
    for wanted in (folder, None):
        left = [path for path in paths if not any(_holds(known, path) for known in found.values())]
        if not left:
            break
        new = (
            os.path.normpath(wanted) if wanted is not None else os.path.commonpath(map(os.path.dirname, left))
        )
        if any(_holds(new, path) for path in left):
            found[_free_name(PurePath(new).name or "files", found)] = new
    return found


def _free_name(name: str, taken: Container[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def is_path(name: str) -> bool:
    """Whether the name that reading gave to an item is an absolute path: neither the hash of a content nor a URL."""
    return os.path.isabs(name)


def named_by_path(name: str, path: str | None, roots: Mapping[str, str]) -> bool:
    """Whether an item has its name from the path of its file. Earlier releases took the absolute path itself."""
    return path is not None and name in (path, name_of(path, roots))
