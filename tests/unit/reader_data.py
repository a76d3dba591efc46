"""Small data for the tests of readers: pictures, archives, the same rows in every format."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec

ROWS = [
    {"id": "a", "file": "p/0.png", "text": "a red, round one", "label": "red", "year": "2023"},
    {"id": "b", "file": "p/1.png", "text": 'the "quoted" one', "label": "blue", "year": "2024"},
    {"id": "c", "file": "p/2.png", "text": "the third\nin two lines", "label": "red", "year": "2024"},
]


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture in a format."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(seed: int, width: int = 24, height: int = 20, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind, **options)


def load(source: Path | str | tuple[str, ...], **options: Any) -> Loaded:
    """Read a source, by default however much of it is set aside."""
    given = source if isinstance(source, tuple) else str(source)
    return read(DataSpec(source=given, **{"quarantine_limit": 1.0, **options}))


def reasons(loaded: Loaded) -> list[tuple[int | None, str]]:
    """Return (row, reason) of what was set aside."""
    return [(entry.row, entry.reason) for entry in loaded.quarantine.entries]


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows in the format that the file's ending says."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_pictures(folder: Path, names: Iterable[str] = ("p/0.png", "p/1.png", "p/2.png")) -> None:
    """Write pictures of noise, each of its own."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo(number))


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes]], change: Callable[[tarfile.TarInfo], None] | None = None
) -> Path:
    """Write an archive of (name, content); `change` may alter each member's head."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change is not None:
                change(info)
            archive.addfile(info, io.BytesIO(data))
    return path
