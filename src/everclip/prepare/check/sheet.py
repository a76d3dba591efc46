"""Draw the sample sheet: one image with samples of a data set and its problems."""

from __future__ import annotations

import contextlib
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from everclip.data.lettering import drawable, font, font_for, plain, wrap
from everclip.data.pictures.images import decode
from everclip.data.sampling.order import key_of
from everclip.data.table import Table
from everclip.data.wording import counted
from everclip.errors import DataError
from everclip.prepare.check.document import Check
from everclip.prepare.check.duplicates import Group, Leak
from everclip.prepare.check.inspect import Inspected
from everclip.prepare.check.inspect_texts import text_column
from everclip.prepare.check.periods import time_counts

COLUMNS = 8
ROWS = 6
"""Rows of samples; each other part has at most half as many."""

_TILE, _GAP, _MARGIN = 132, 12, 28
_LINES, _LINE, _SMALL = 3, 14, 11
_TITLE, _HEAD = 50, 44
_GLIMPSE = 20_000_000  # bytes; larger unusable files are not shown
_TEXT, _MUTED, _GROUND, _WELL, _RED, _AMBER, _BLUE = (
    "#1b1d21",
    "#55606d",
    "#ffffff",
    "#eef1f5",
    "#b0234f",
    "#c04a00",
    "#0b62c4",
)


@dataclass(frozen=True)
class Tile:
    """One image with a coloured tag and a text below; without `row` the file `path`, if it can be decoded."""

    row: int | None
    text: str
    tag: str = ""
    colour: str = _MUTED
    joined: bool = False  # belongs to the tile before it
    path: str = ""


@dataclass(frozen=True)
class Part:
    """A heading and its tiles."""

    title: str
    note: str
    tiles: tuple[Tile, ...]


def sample_sheet(inspected: Inspected) -> bytes:
    """Draw the sample sheet; the same data always gives the same sheet.

    Returns:
        A PNG.
    """
    texts = [plain(str(text or ""), 120) for text in text_column(inspected.table)]
    parts = [
        _leaks(inspected, texts),
        _conflicts(inspected, texts),
        _near(inspected, texts),
        _set_aside(inspected),
        _sample(inspected, texts),
    ]
    return draw_parts(inspected.table, inspected.check, [part for part in parts if part and part.tiles])


# -- content -----------------------------------------------------------------------------------------------------


def _leaks(inspected: Inspected, texts: Sequence[str]) -> Part | None:
    leaks = _spread(inspected.duplicates.leaks, COLUMNS // 2 * (ROWS // 2))
    tiles = [
        tile
        for leak in leaks
        for tile in (
            Tile(leak.row, texts[leak.row], leak.side, _RED),
            Tile(leak.other, texts[leak.other], f"{leak.other_side} · {_kind_text(leak)}", _RED, joined=True),
        )
    ]
    note = "The left image is held out, the right one is used for training: scores on it are too high."
    return Part(f"Across the split ({len(inspected.duplicates.leaks):,})", note, tuple(tiles))


def _spread(leaks: Sequence[Leak], most: int) -> list[Leak]:
    """Choose leaks of every kind, the most serious first."""
    by_kind: dict[str, list[Leak]] = defaultdict(list)
    for leak in leaks:
        by_kind[f"{leak.side} {leak.kind}"].append(leak)
    each = max(1, most // max(1, len(by_kind)))
    return [leak for kind in by_kind.values() for leak in kind[:each]][:most]


def _kind_text(leak: Leak) -> str:
    return {"bytes": "same file", "pixels": "same pixels"}.get(leak.kind, f"near, {leak.difference:.0f}")


def _conflicts(inspected: Inspected, texts: Sequence[str]) -> Part | None:
    tiles = [
        Tile(row, texts[row], "class " + str(number + 1), _AMBER, joined=number > 0)
        for rows in inspected.duplicates.conflicts[:COLUMNS]
        for number, row in enumerate(rows[:2])
    ]
    note = "The same image under different classes."
    return Part(f"Conflicting classes ({len(inspected.duplicates.conflicts):,})", note, tuple(tiles))


def _near(inspected: Inspected, texts: Sequence[str]) -> Part | None:
    groups: list[Group] = [g for g in inspected.duplicates.groups if g.kind != "bytes"]
    chosen = sorted(groups, key=lambda g: (g.kind != "near", key_of("sheet", inspected.table.ids[g.rows[0]])))
    tiles = [
        Tile(
            row,
            texts[row],
            f"{'near' if g.kind == 'near' else 'same pixels'} · {len(g.rows)}",
            _BLUE,
            number > 0,
        )
        for g in chosen[: COLUMNS // 2 * (ROWS // 2)]
        for number, row in enumerate(g.rows[:2])
    ]
    return Part(f"Nearly the same ({counted(len(groups), 'group')})", "Two of each group.", tuple(tiles))


def _set_aside(inspected: Inspected) -> Part | None:
    """Return examples of rows per reason of the quarantine."""
    by_reason: dict[str, list[Tile]] = defaultdict(list)
    for entry in inspected.quarantine.entries:
        held = by_reason[entry.reason]
        if len(held) < 3:
            name = Path(entry.path).name or entry.name
            text = plain(f"{name}: {entry.detail}" if entry.detail else name, 120)
            held.append(Tile(None, text, entry.reason, _RED, path=entry.path))
    tiles = [tile for held in by_reason.values() for tile in held][: COLUMNS * (ROWS // 2)]
    return Part(
        f"Set aside ({len(inspected.quarantine.entries):,})", "Rows that cannot be used.", tuple(tiles)
    )


def _sample(inspected: Inspected, texts: Sequence[str]) -> Part | None:
    table = inspected.table
    rows, note = _chosen(table)
    times = table.column("time") if table.has("time") else [None] * len(table)
    languages = table.column("language") if len(inspected.check.languages) > 1 else [None] * len(table)
    tiles = []
    for row in rows:
        tag = " · ".join(
            str(v) for v in (times[row], languages[row], inspected.sides[row]) if v not in (None, "")
        )
        tiles.append(Tile(row, texts[row], plain(tag, 22)))
    return Part("Sample", note, tuple(tiles))


def _chosen(table: Table) -> tuple[list[int], str]:
    """Choose rows by a hash of their id: across the periods, else across the classes, else from all."""
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(table.identities()):
        rows_of.setdefault(name, []).append(row)
    order = {name: key_of("sheet", name) for name in rows_of}
    # One caption per image, chosen by hash, so that every language is shown.
    mixed = [
        rows_of[name][order[name] % len(rows_of[name])] for name in sorted(rows_of, key=order.__getitem__)
    ]
    most = COLUMNS * ROWS
    if table.has("time"):
        counts = time_counts(table.column("time"))
        if counts is not None and len(counts.counts) > 1:
            cut = len(next(iter(counts.counts))) if counts.period != "value" else 64
            times = table.column("time")
            labels = ["" if times[row] is None else str(times[row])[:cut] for row in mixed]
            return _over(mixed, labels, sorted(set(labels)), most), f"Over time, by {counts.period}."
    for column in ("class_name", "class_key"):
        if table.has(column):
            classes = table.column(column)
            labels = [str(classes[row]) for row in mixed]
            names = sorted(set(labels), key=lambda name: key_of("sheet", name))
            if len(names) > 1:
                shown = (
                    f"{min(len(names), most)} of {len(names):,} classes"
                    if len(names) > most
                    else "all classes"
                )
                return _over(mixed, labels, sorted(names[:most]), most), f"By class: {shown}."
    return mixed[:most], "Chosen by hash."


def _over(rows: Sequence[int], labels: Sequence[str], names: Sequence[str], most: int) -> list[int]:
    """Take rows from the names in turn up to `most`; return them grouped by name."""
    held: dict[str, list[int]] = {name: [] for name in names}
    for row, label in zip(rows, labels, strict=True):
        if label in held:
            held[label].append(row)
    taken: dict[str, list[int]] = {name: [] for name in names}
    count, turn = 0, 0
    while count < most and any(len(h) > turn for h in held.values()):
        for name in names:
            if turn < len(held[name]) and count < most:
                taken[name].append(held[name][turn])
                count += 1
        turn += 1
    return [row for name in names for row in taken[name]]


# -- drawing -----------------------------------------------------------------------------------------------------


def draw_parts(table: Table, check: Check, parts: Sequence[Part]) -> bytes:
    """Draw parts below each other, tiles in rows of `COLUMNS`."""
    rows = [_rows(part) for part in parts]
    width = 2 * _MARGIN + COLUMNS * _TILE + (COLUMNS - 1) * _GAP
    heights = [_HEAD + sum(row.height for row in of_part) for of_part in rows]
    canvas = Image.new("RGB", (width, 2 * _MARGIN + _TITLE + sum(heights)), _GROUND)
    pen = ImageDraw.Draw(canvas)
    name = plain(check.source, 60)
    title = font_for(name, 22)
    pen.text((_MARGIN, _MARGIN), drawable(name, title), _TEXT, title)
    about = f"{counted(check.rows, 'row')}, {counted(check.pictures, 'image')}"
    pen.text((_MARGIN, _MARGIN + 30), about, _MUTED, font(13))
    top = _MARGIN + _TITLE
    for part, of_part, height in zip(parts, rows, heights, strict=True):
        pen.text((_MARGIN, top + 14), part.title, _TEXT, font(15, bold=True))
        left = _MARGIN + font(15, bold=True).getlength(part.title) + 12
        pen.text((left, top + 16), part.note, _MUTED, font(12))
        y = top + _HEAD
        for row in of_part:
            for place, (tile, lines) in enumerate(zip(row.tiles, row.lines, strict=True)):
                _draw_tile(canvas, pen, table, tile, lines, _MARGIN + place * (_TILE + _GAP), y)
            y += row.height
        top += height
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class _Row:
    """Tiles side by side with their wrapped texts; as high as its longest text needs."""

    tiles: tuple[Tile, ...]
    lines: tuple[list[str], ...]
    height: int


def _rows(part: Part) -> list[_Row]:
    rows = []
    for start in range(0, len(part.tiles), COLUMNS):
        tiles = part.tiles[start : start + COLUMNS]
        lines = []
        for tile in tiles:
            chosen = font_for(tile.text, _SMALL)
            lines.append(wrap(drawable(tile.text, chosen), chosen, _TILE, _LINES))
        deepest = max(len(t) + bool(tile.tag) for t, tile in zip(lines, tiles, strict=True))
        rows.append(_Row(tiles, tuple(lines), _TILE + 6 + deepest * _LINE + _GAP))
    return rows


def _draw_tile(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, table: Table, tile: Tile, lines: list[str], x: int, y: int
) -> None:
    pen.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), fill=_WELL)
    if tile.joined:
        pen.rectangle((x - _GAP, y + _TILE // 2 - 2, x - 1, y + _TILE // 2 + 1), fill=tile.colour)
    picture = glimpse(tile.path) if tile.row is None else _decoded(table, tile.row)
    if picture is not None:
        _paste(canvas, picture, x, y)
    elif tile.row is None:
        pen.line((x + 50, y + 50, x + _TILE - 50, y + _TILE - 50), _RED, 3)
        pen.line((x + 50, y + _TILE - 50, x + _TILE - 50, y + 50), _RED, 3)
    below = y + _TILE + 5
    if tile.tag:
        bold = font(_SMALL, bold=True)
        pen.text((x, below), drawable(tile.tag, bold), tile.colour, bold)
        below += _LINE
    for line in lines:
        pen.text((x, below), line, _TEXT, font_for(tile.text, _SMALL))
        below += _LINE


def _decoded(table: Table, row: int) -> Image.Image | None:
    try:
        return decode(*table.encoded(row))
    except DataError:  # the file changed or was deleted since it was read
        return None


def glimpse(path: str) -> Image.Image | None:
    """Decode a file that was set aside: all of it, or the upper part of a JPEG that ends early; else `None`."""
    try:
        if not path or os.stat(path).st_size > _GLIMPSE:
            return None
        data = Path(path).read_bytes()
    except OSError:
        return None
    for ending in (b"", b"\xff\xd9"):
        with contextlib.suppress(DataError):
            return decode(data + ending, path)
    return None


def _paste(canvas: Image.Image, picture: Image.Image, x: int, y: int) -> None:
    scale = _TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Tiny images are shown as pixels.
    filter_ = Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.NEAREST
    picture = picture.resize(size, filter_, reducing_gap=3.0 if scale < 1 else None)
    canvas.paste(picture, (x + (_TILE - size[0]) // 2, y + (_TILE - size[1]) // 2))
