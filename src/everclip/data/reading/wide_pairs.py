"""Tables with two images per row, as Winoground and pairs from NLVR: one row per image, with the column `pair`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from everclip.data.reading.columns import GUESSES, plain_name
from everclip.data.reading.formats.raw import Raw
from everclip.data.table import replaced

TWO_CAPTIONS = ("image_0", "image_1", "caption_0", "caption_1")
"""Winoground: caption 0 is true of image 0, caption 1 of image 1."""

ONE_CAPTION = ("image_true", "image_false")
"""One caption, true of the first image and false of the second."""


def with_row_per_image(raw: Raw, user_columns: Mapping[str, str]) -> Raw:
    """Return a table of pairs with one row per image; any other table as it is.

    Args:
        raw: the table.
        user_columns: canonical names to columns, as the user says; a table whose image column is named stays as it is.
    """
    names = set(raw.columns.column_names)
    if user_columns.get("image") or user_columns.get("pair") == "" or names & {"image", "pair"}:
        return raw
    if names >= set(TWO_CAPTIONS):
        sides: tuple[dict[str, str | None], ...] = (
            {"image": "image_0", "caption": "caption_0"},
            {"image": "image_1", "caption": "caption_1"},
        )
    elif names >= set(ONE_CAPTION) and (caption := _caption(raw, user_columns)) is not None:
        sides = {"image": "image_true", "caption": caption}, {"image": "image_false", "caption": None}
    else:
        return raw
    return _unfolded(raw, sides)


def _caption(raw: Raw, user_columns: Mapping[str, str]) -> str | None:
    """Return the column of the captions: the one that the user names, or the only one with such a name."""
    given = user_columns.get("caption")
    if given:
        return given if given in raw.columns.column_names else None
    plain = set(map(plain_name, GUESSES["caption"]))
    found = [name for name in raw.columns.column_names if plain_name(name) in plain]
    return found[0] if len(found) == 1 else None


def _unfolded(raw: Raw, sides: tuple[dict[str, str | None], ...]) -> Raw:
    count = raw.columns.num_rows
    used = {name for side in sides for name in side.values() if name is not None}
    rows = pa.array([row for row in range(count) for _ in range(2)], pa.int64())
    # The first half of a joined column is of the first images; rows 0, count, 1, count + 1...
    woven = pa.array([side * count + row for row in range(count) for side in range(2)], pa.int64())
    columns = raw.columns.select([n for n in raw.columns.column_names if n not in used and n != "id"]).take(
        rows
    )
    own = raw.columns.column("id").to_pylist() if "id" in raw.columns.column_names else range(1, count + 1)
    columns = replaced(columns, "pair", pa.array([str(name) for name in own for _ in range(2)], pa.string()))
    for wanted in ("image", "caption"):
        first, second = (side[wanted] for side in sides)
        assert first is not None
        held = raw.columns.column(first)
        other = (
            pa.chunked_array([pa.nulls(count, held.type)])
            if second is None
            else raw.columns.column(second).cast(held.type)
        )
        columns = replaced(columns, wanted, pa.chunked_array([*held.chunks, *other.chunks]).take(woven))
    if "collapsed_tag" in columns.column_names and "pattern" not in columns.column_names:
        columns = replaced(columns, "pattern", columns.column("collapsed_tag"))
    odd = {
        wanted: {
            2 * row + k: what
            for k, side in enumerate(sides)
            for row, what in raw.odd.get(side[wanted] or "", {}).items()
        }
        for wanted in ("image", "caption")
    }
    return replace(
        raw,
        columns=columns,
        numbers=[raw.number(row) or row + 1 for row in range(count) for _ in range(2)],
        labels=None if raw.labels is None else [raw.labels[row] for row in range(count) for _ in range(2)],
        known={**raw.known, "image": "image", "caption": "caption", "pair": "pair"},
        flaws={2 * row + k: flaw for row, flaw in raw.flaws.items() for k in range(2)},
        odd=odd,
        notes=[*raw.notes, f"{raw.name}: each row holds two images, which form a pair"],
    )
