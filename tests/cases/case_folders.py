"""Reading a folder, writing folders of classes, and what a reading said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from build import picture

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec


def load(source: Path, labelled: bool = True, **options: object) -> Loaded:
    return read(DataSpec(source=str(source), **{"quarantine_limit": 1.0, **options}), labelled=labelled)


def classes(folder: Path, names: Iterable[str], count: int = 2, seed: int = 0) -> Path:
    for number, name in enumerate(names):
        for i in range(count):
            picture(folder / name / f"{i}.png", "cat", (16, 16), seed + 50 * number + i)
    return folder


def counts(loaded: Loaded, column: str) -> dict[str, int]:
    return dict(Counter(map(str, loaded.table.column(column))))


def said(loaded: Loaded, *parts: str) -> bool:
    return any(all(part in line for part in parts) for line in loaded.guesses)
