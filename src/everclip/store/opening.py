"""Open a store wherever it is: in a folder, or far away (`s3://bucket/shop`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from everclip.store.remote.objects import RemoteObjects
from everclip.store.remote.working_copy import WorkingCopy
from everclip.store.versions import Store
from everclip.urls import is_remote


def open_store(
    place: str | Path,
    say: Callable[[str], None] = lambda line: None,
    tables: bool = False,
    cache: Path | None = None,
) -> Store:
    """Open a store.

    Args:
        place: a folder, or a URL that fsspec knows.
        say: called with lines for the user.
        tables: far away: whether the tables of the search index are needed on this machine.
        cache: far away: the folder of the working copy; default: everclip's cache folder.

    Raises:
        ConfigError: if it is no store, or the package for the URL is not installed.
        CheckpointError: if the store is damaged.
        RunFolderError: if the server does not answer, or refuses.
    """
    if not is_remote(str(place)):
        return Store(Path(place), say)
    copy = WorkingCopy(str(place), say, tables, cache)
    copy.refresh()
    return store_at(copy, say)


def store_at(copy: WorkingCopy, say: Callable[[str], None] = lambda line: None) -> Store:
    """Return the store of a working copy."""
    return Store(copy.tree, say, copy, RemoteObjects(copy))
