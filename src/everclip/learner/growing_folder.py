"""A folder that grows while the program runs, as batches for `Learner.observe`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from everclip.errors import ConfigError
from everclip.files import user_path

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
"""Endings of the files that are read, in lower case."""


def growing_folder(
    folder: str | PathLike[str],
    batch_size: int = 64,
    *,
    every: float = 1.0,
    patience: float | None = None,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the images of a folder of class folders as they arrive, oldest first.

    A file counts when it did not change for `every` seconds, so that no half-written file is read. If there are too
    few for a batch, they are yielded as a smaller one as soon as no further file arrives for `every` seconds. A learner
    that is loaded again leaves out what it has seen (`Learner.observe`), so begin with the same folder.

    Args:
        folder: holds a folder per class, named after it.
        batch_size: most images of a batch.
        every: seconds between two looks at the folder, and without a change after which a file is complete.
        patience: seconds without a new file after which it ends; `None`: never.
        now: the clock, in seconds.
        sleep: waits for so many seconds.

    Yields:
        Rows with `image` (a path) and `class_name`.

    Raises:
        ConfigError: if there is no such folder, or a number does not fit.

    Example:
        >>> for batch in growing_folder("incoming/"):
        ...     print(learner.observe(batch).losses)
    """
    root = user_path(folder, "growing_folder")
    if not root.is_dir():
        raise ConfigError(f"growing_folder: {root} is not a folder.")
    if batch_size < 1 or every <= 0:
        raise ConfigError(f"growing_folder: batch_size={batch_size} and every={every} must be positive.")
    return _batches(root, batch_size, every, patience, now, sleep)


def _batches(
    root: Path,
    batch_size: int,
    every: float,
    patience: float | None,
    now: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[list[dict[str, Any]]]:
    taken: set[Path] = set()
    waiting: list[Path] = []
    arrived = now()
    while True:
        found, more = _new_files(root, taken, now() - every, now())
        taken |= set(found)
        waiting += found
        while len(waiting) >= batch_size or (waiting and not more):
            rows, waiting = waiting[:batch_size], waiting[batch_size:]
            yield [{"image": str(path), "class_name": path.parent.name} for path in rows]
        arrived = now() if found or more else arrived
        if patience is not None and not more and now() - arrived >= patience:
            return
        sleep(every)


def _new_files(root: Path, taken: set[Path], before: float, now: float) -> tuple[list[Path], bool]:
    """Return new images that did not change since `before`, oldest first, and whether others changed since then."""
    ages, changed = [], False
    for path in root.glob("*/*"):
        if path in taken or path.suffix.lower() not in ENDINGS:
            continue
        try:
            age = path.stat().st_mtime
        except FileNotFoundError:
            continue  # removed since it was listed
        if age <= before:
            ages.append((age, path))
        changed |= before < age <= now  # one dated in the future holds up nothing
    return [path for _, path in sorted(ages)], changed
