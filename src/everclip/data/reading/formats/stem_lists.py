"""Read headless lists of `name label` whose names have no ending: `trainval.txt` of Oxford's pets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from everclip.data.reading.formats.listing import Listing, listed
from everclip.data.reading.formats.picture_index import PictureIndex
from everclip.data.reading.formats.raw import Raw
from everclip.data.reading.formats.text_file import open_text, text_encoding
from everclip.data.reading.quarantine import Entry

ENDINGS = (".txt", ".lst", ".list")
_LOOKED_AT = 50
_MOST_COLUMNS = 16
_MOST_LISTS = 20
_LEAST_DIGITS = 4


def stem_lists_of(listing: Listing, known: Sequence[str]) -> list[str]:
    """Return the text files in a folder, and in its folders without images, that may be such lists.

    Args:
        listing: the folder.
        known: lists that are already known.
    """
    places = [("", listing)]
    places += [
        (f"{name}/", listed(listing.path / name)) for name in listing.folders if name not in listing.filled
    ]
    found = []
    for start, place in places:
        names = [start + name for name in place.of_endings(*ENDINGS) if start + name not in known]
        if len(names) <= _MOST_LISTS:  # many text files are captions of images
            found += [name for name in names if _has_cells(listing.path / name)]
    return found


def _has_cells(path: Path) -> bool:
    """Whether the first lines of a text file have equal numbers of words, two or more."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096).replace(b"\0", b"").splitlines()[:6]
    except OSError:
        return False
    counts = {len(line.split()) for line in head[:5] if line.strip() and not line.startswith(b"#")}
    return len(counts) == 1 and 2 <= min(counts) <= _MOST_COLUMNS


def _is_named(index: PictureIndex, name: str) -> bool:
    """Whether a name is that of an image; small numbers may be classes or coordinates."""
    file = index.find_by_stem(name)  # lists of full names are tables
    return file is not None and (
        not name.isdecimal() or (len(name) >= _LEAST_DIGITS and Path(file).stem == name)
    )


def read_stem_list(path: Path, index: PictureIndex, encoding: str | None) -> Raw | None:
    """Read a list whose lines hold an image's name and further cells, or return `None`.

    Lines that begin with `#` are ignored.

    Args:
        path: the file.
        index: images that the list may name.
        encoding: as the user says.
    """
    if path.suffix.lower() not in ENDINGS or index.find_by_stem(path.stem) is not None:
        return None  # has the name of an image: it is the text of that image
    found = text_encoding(path, encoding)
    with open_text(path, found.name) as file:
        lines = [
            (i, line.strip()) for i, line in enumerate(file, 1) if line.strip() and not line.startswith("#")
        ]
    separator = "\t" if lines and all("\t" in line for _, line in lines[:_LOOKED_AT]) else None
    rows = [(i, line.split(separator)) for i, line in lines]
    width = len(rows[0][1]) if rows else 0
    head = [cells for _, cells in rows[:_LOOKED_AT]]
    fitting = {cells[0] for cells in head if len(cells) == width and _is_named(index, cells[0])}
    if not 2 <= width <= _MOST_COLUMNS or 2 * len(fitting) < len(head):
        return None
    kept = [(row, cells) for row, (_, cells) in enumerate(rows, 1) if len(cells) == width]
    broken = [
        Entry(
            row, f"{path.name}, row {row} (line {line})", "bad-row", f"{len(cells)} cells, expected {width}"
        )
        for row, (line, cells) in enumerate(rows, 1)
        if len(cells) != width
    ]
    files = [index.find_any(cells[0]) for _, cells in kept]
    columns = {str(i + 1): [cells[i] for _, cells in kept] for i in range(width)}
    columns["1"] = [file or cells[0] for file, (_, cells) in zip(files, kept, strict=True)]
    raw = Raw(
        path.name,
        pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}),
        [row for row, _ in kept],
        broken,
        root=index.folder,
        root_fixed=True,
        known={"image": "1"},
        notes=[found.note] if found.note else [],
        textual=True,
        headless=True,
    )
    note = f"{path.name}: each line is read as an image's name without its ending, and its labels"
    return replace(raw, notes=[*raw.notes, f"{note} ({kept[0][1][0]} is {files[0]})"])
