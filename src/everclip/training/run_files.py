"""Which files of a run folder are which: what a publication writes first, what a run never removes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from everclip.evaluation.results import FILE as RESULTS
from everclip.remote.scanning import Stamp, scan
from everclip.training.checkpoint import MANIFEST
from everclip.training.run_folder import CONFIG, LOG

NOTE = ".copy.json"
"""What a copy remembers of the URL."""

LOCAL = ("features/", NOTE)
"""Files that only this machine needs: features that do not fit in memory are removed after a task."""

CHECKPOINT = re.compile(r"checkpoints/\d{8}/")
_PAGES = re.compile(r"[^/]+\.html|diagnosis[^/]*|figures/.*")
_KEPT = re.compile(rf"{re.escape(CONFIG)}|{re.escape(LOG)}|rows/.*|examples/.*")


def mirrored(folder: Path) -> dict[str, Stamp]:
    """Return path -> stamp of the files of a copy that belong to the URL, too.

    Raises:
        RunFolderError: if a folder cannot be read: its files would seem to be gone.
    """
    return {path: stamp for path, stamp in scan(folder).items() if not path.startswith(LOCAL)}


def is_leftover(path: str) -> bool:
    """Whether a file is what a killed process had not written to its end."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".tmp")


def is_manifest(path: str) -> bool:
    """Whether a file is the manifest of a checkpoint."""
    return CHECKPOINT.match(path) is not None and path.endswith(f"/{MANIFEST}")


def newest(paths: Iterable[str]) -> str:
    """Return the name of the newest whole checkpoint among the files of a run; "" if there is none."""
    return max(filter(is_manifest, paths), default="")


def kept(paths: Iterable[str]) -> set[str]:
    """Return the files that no run removes: if one is gone, someone else removed it."""
    return {path for path in paths if _KEPT.fullmatch(path)}


def in_order(paths: Iterable[str]) -> list[list[str]]:
    """Return files in the groups in which a publication writes them.

    The result is the last: a finished result says that the pages are those of this end of the run.
    """
    groups: list[list[str]] = [[], [], [], [], []]
    for path in sorted(paths):
        groups[_group(path)].append(path)
    return groups


def _group(path: str) -> int:
    if CHECKPOINT.match(path):
        return 2 if is_manifest(path) else 1
    if _PAGES.fullmatch(path):
        return 3
    return 4 if path == RESULTS else 0
