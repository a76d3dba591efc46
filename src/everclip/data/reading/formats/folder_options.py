"""Options for reading a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from everclip.data.reading.settings import PLAIN, Reading


@dataclass(frozen=True)
class FolderOptions:
    """Options for reading a folder.

    Attributes:
        labelled: whether captions or classes are needed; if not, images beside folders are read, too.
        sides: whether names such as `train` and `test` are sides of the split.
        root: where paths start, as the user says (`data.root`); links may lead to files below it.
        reading: what the user says about tables and text files.
        columns: canonical names to those of tables, as the user says.
        depth: levels below the folder that the user named.
    """

    labelled: bool = True
    sides: bool = True
    root: Path | None = None
    reading: Reading = PLAIN
    columns: Mapping[str, str] = field(default_factory=dict)
    depth: int = 0

    def deeper(self) -> FolderOptions:
        """Return the options for an inner folder."""
        return replace(self, depth=self.depth + 1)
