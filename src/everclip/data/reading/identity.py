"""Ids of samples and of images: as given, else the hash of the image."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from everclip.data.table import replaced

Broken = dict[int, tuple[str, str]]


def with_ids(
    columns: pa.Table,
    hashes: Sequence[str | None],
    owners: Sequence[str],
    broken: Broken,
    trusted: bool = False,
) -> tuple[pa.Table, list[str]]:
    """Fill `id` and `image_id`; set rows aside whose id is missing or repeated.

    Rows with equal images share their `image_id`, so that a split keeps them on one side.

    Args:
        columns: all rows, usable or not.
        hashes: SHA-256 of each row's image, `None` if it cannot be used.
        owners: the file of each row.
        broken: rows that are set aside so far; added to.
        trusted: whether `image_id` comes from the format itself and is kept, whatever the images hold.

    Returns:
        The columns, and lines for people.
    """
    short = [None if h is None else h[:16] for h in hashes]
    lines: list[str] = []
    image_ids: list[str | None] = list(short)
    if "image_id" in columns.column_names:
        given = columns.column("image_id").to_pylist()
        if not trusted:
            given, lines = _image_ids(given, short, owners, broken)
        image_ids = [own if name is None else name for name, own in zip(given, short, strict=True)]
    columns = replaced(columns, "image_id", pa.array(image_ids, pa.string()))
    if "id" not in columns.column_names:
        return replaced(columns, "id", pa.array(_counted(short, broken), pa.string())), lines
    ids = columns.column("id").to_pylist()
    clash = _clash(ids, owners, broken)
    if clash is not None:
        # Each file numbers its rows from 0. All ids get the file's name: no id then depends on the order of files.
        ids = [i if i is None else f"{owner}/{i}" for i, owner in zip(ids, owners, strict=True)]
        lines += [f"ids repeat between files ({clash!r}): every id begins with its file's name ({ids[0]!r})"]
        columns = replaced(columns, "id", pa.array(ids, pa.string()))
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if row in broken:
            continue
        if name is None or name == "":
            broken[row] = ("missing-id", "give every row one, or leave the column out with data.columns.id=")
        elif name in first:
            broken[row] = ("duplicate-id", f"id {name!r} stands in an earlier row already")
        else:
            first[name] = row
    return columns, lines


def _image_ids(
    given: Sequence[str | None], contents: Sequence[str | None], owners: Sequence[str], broken: Broken
) -> tuple[list[str | None], list[str]]:
    """Return one name per image.

    Files that each number their images from 0 get the file's name before the number. Equal images get the first of
    their names.
    """
    lines: list[str] = []
    first: dict[str, tuple[str, str | None]] = {}
    clash = None
    for row, (name, owner) in enumerate(zip(given, owners, strict=True)):
        if name is not None and row not in broken:
            seen = first.setdefault(name, (owner, contents[row]))
            if seen[0] != owner and seen[1] != contents[row]:
                clash = name
                break
    if clash is not None:
        given = [n if n is None else f"{owner}/{n}" for n, owner in zip(given, owners, strict=True)]
        lines.append(f"image ids repeat between files ({clash!r}): every one begins with its file's name")
    known: dict[str, str] = {}
    names: list[str | None] = []
    joined = 0
    for name, content in zip(given, contents, strict=True):
        if name is not None and content is not None:
            joined += known.setdefault(content, name) != name
            name = known[content]
        names.append(name)
    if joined:
        lines.append(
            f"{joined:,} rows have another image_id than an earlier row with the same image: it counts as one"
        )
    return names, lines


def _counted(names: Sequence[str | None], broken: Broken) -> list[str | None]:
    """Add numbers to repeated names, from the second on."""
    seen: dict[str, int] = {}
    counted: list[str | None] = []
    for row, name in enumerate(names):
        if name is None or row in broken:
            counted.append(None)
            continue
        seen[name] = seen.get(name, 0) + 1
        counted.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return counted


def _clash(ids: Sequence[str | None], owners: Sequence[str], broken: Broken) -> str | None:
    """Return an id that occurs in two files, or `None`."""
    owner_of: dict[str, str] = {}
    for row, (name, owner) in enumerate(zip(ids, owners, strict=True)):
        if name is not None and row not in broken and owner_of.setdefault(name, owner) != owner:
            return name
    return None
