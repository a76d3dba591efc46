"""Files and folders that systems and programs leave beside data: they are passed over, counted and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

FOLDERS = frozenset(
    (
        "__macosx", "$recycle.bin", "lost+found", "system volume information", "found.000", "__pycache__",
        "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "@sharebin", "#recycle", "#snapshot",
    )
)  # fmt: skip
"""In small letters; names that begin with a dot count as well."""

FILES = frozenset(
    (
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", "folder.htt",
        "autorun.inf", "zbthumbnail.info", "desktop.lnk",
    )
)  # fmt: skip
"""In small letters; names that begin with a dot or with `~$` count as well."""

_SHOWN = 5


def is_foreign_folder(name: str) -> bool:
    """Whether a folder of this name holds no data of the user."""
    return name.startswith(".") or name.lower() in FOLDERS


def is_foreign_file(name: str) -> bool:
    """Whether a file of this name is none of the user's."""
    return name.startswith((".", "~$")) or name.lower() in FILES


def is_foreign_path(path: str) -> bool:
    """Whether a path that a list or an archive names leads to a file of a system.

    A hidden file or folder that a list names is meant; what macOS, a notebook or a storage box leaves is not.
    """
    *folders, name = path.replace("\\", "/").split("/")
    left = any(part.lower() in FOLDERS or part == ".ipynb_checkpoints" for part in folders)
    return left or name.startswith("._") or name == ".DS_Store" or name.lower() in FILES


def foreign_note(where: str, names: Iterable[str]) -> list[str]:
    """Return a line that counts and names what was passed over, or none."""
    counts = Counter(names)
    if not counts:
        return []
    return [f"{where}: passed over, left by a system or a program: {counts.total():,} ({some(counts)})"]


def some(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    held = list(dict.fromkeys(names))
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in held[:_SHOWN])
    return shown + (f" and {len(held) - _SHOWN:,} more" if len(held) > _SHOWN else "")
