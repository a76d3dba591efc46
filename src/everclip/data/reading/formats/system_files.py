"""Recognise files and folders that systems and programs leave beside data; they are skipped, counted and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

FOLDERS = frozenset(
    (
        "__macosx", "$recycle.bin", "lost+found", "system volume information", "found.000", "__pycache__",
        "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "@sharebin", "#recycle", "#snapshot",
    )
)  # fmt: skip
"""In lower case; names that begin with a dot count, too."""

FILES = frozenset(
    (
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", "folder.htt",
        "autorun.inf", "zbthumbnail.info", "desktop.lnk",
    )
)  # fmt: skip
"""In lower case; names that begin with a dot or `~$` count, too."""

_SHOWN = 5


def is_system_folder(name: str) -> bool:
    """Whether a folder with this name is left by a system or a program."""
    return name.startswith(".") or name.lower() in FOLDERS


def is_system_file(name: str) -> bool:
    """Whether a file with this name is left by a system or a program."""
    return name.startswith((".", "~$")) or name.lower() in FILES


def is_system_path(path: str) -> bool:
    """Whether a path in a list or an archive is left by a system or a program.

    Hidden files and folders that a list names are data; files of macOS, notebooks and storage boxes are not.
    """
    *folders, name = path.replace("\\", "/").split("/")
    left = any(part.lower() in FOLDERS or part == ".ipynb_checkpoints" for part in folders)
    return left or name.startswith("._") or name == ".DS_Store" or name.lower() in FILES


def system_files_note(where: str, names: Iterable[str]) -> list[str]:
    """Return a line with the number and the names of skipped files; nothing if there are none."""
    counts = Counter(names)
    if not counts:
        return []
    return [f"{where}: ignored, left by a system or a program: {counts.total():,} ({brief(counts)})"]


def brief(names: Iterable[str]) -> str:
    """Return the first names, separated by commas, and the number of the others."""
    held = list(dict.fromkeys(names))
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in held[:_SHOWN])
    return shown + (f" and {len(held) - _SHOWN:,} more" if len(held) > _SHOWN else "")
