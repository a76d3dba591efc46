"""Reading a table, and what its captions and rows set aside are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec


def loaded(source: Path, **options: Any) -> Loaded:
    return read(DataSpec(source=str(source), **{"quarantine_limit": 1.0, **options}))


def captions(found: Loaded) -> list[Any]:
    return found.table.column("caption")


def details(found: Loaded) -> dict[int | None, str]:
    return {entry.row: f"{entry.reason}: {entry.detail}" for entry in found.quarantine.entries}
