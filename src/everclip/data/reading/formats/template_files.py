"""Read templates from a file beside the data, as in CLIP-benchmark's shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everclip.data.reading.formats.text_file import small_text
from everclip.data.reading.source_path import expanded
from everclip.errors import ConfigError, DataError
from everclip.templates import templates_of

FILES = ("zeroshot_classification_templates.txt", "templates.txt")
_MOST_BYTES = 1 << 20


def templates_beside(sources: Sequence[str], root: Path | None = None) -> tuple[tuple[str, ...], str] | None:
    """Return the templates of a file in the folder of the data or its parent, and the file's name for people.

    A file with a line without `{}` is ignored.

    Args:
        sources: of a data block; several must have the same templates.
        root: folder that relative paths start from.
    """
    found = [_beside(source, root) for source in sources]
    return found[0] if found and all(one == found[0] for one in found) else None


def _beside(source: str, root: Path | None) -> tuple[tuple[str, ...], str] | None:
    if source.startswith(("builtin:", "hub:", "catalog:")):
        return None
    path = (root or Path()) / expanded(source)
    folder = path if path.is_dir() else path.parent
    return templates_in(folder) or templates_in(folder.resolve().parent)


def templates_in(folder: Path) -> tuple[tuple[str, ...], str] | None:
    """Return the templates of a file in a folder, and the folder's and the file's name."""
    for file in (folder / name for name in FILES):
        if not file.is_file():
            continue
        try:
            lines = [line.strip() for line in small_text(file, _MOST_BYTES).splitlines() if line.strip()]
            return templates_of(lines, file.name), f"{file.parent.name}/{file.name}"
        except (OSError, DataError, ConfigError):
            continue  # not templates: it is named among the unread files
    return None
