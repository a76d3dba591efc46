"""How a folder is to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from everclip.data.reading.settings import PLAIN, Reading


@dataclass(frozen=True)
class FolderOptions:
    """How a folder is read.

    Attributes:
        labelled: whether captions or classes are needed; if not, pictures beside folders count as those in them.
        sides: whether names such as `train` and `test` are sides of the split.
        root: where paths start, as the user says (`data.root`); links may lead to what lies below it.
        reading: what the user says about tables and text files.
        columns: canonical names to those of tables, as the user says.
        depth: how many folders this one lies below that which the user named.
    """

    labelled: bool = True
    sides: bool = True
    root: Path | None = None
    reading: Reading = PLAIN
    columns: Mapping[str, str] = field(default_factory=dict)
    depth: int = 0

    def deeper(self) -> FolderOptions:
        """Return the options for a folder inside."""
        return replace(self, depth=self.depth + 1)
