"""Captions in several columns of a table: `caption_1, caption_2`, a repeated `caption`, `caption_en, caption_de`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from everclip.data.reading.blanks import trimmed
from everclip.data.reading.caption_languages import are_languages
from everclip.data.reading.columns import caption_family, caption_like, caption_names
from everclip.data.reading.content_columns import text_columns
from everclip.data.reading.formats.raw import Raw


def with_caption_columns(
    raw: Raw, names: dict[str, str], user_columns: Mapping[str, str], lines: list[str]
) -> Raw:
    """Join all caption columns into one column of lists.

    Args:
        raw: the rows.
        names: canonical names to columns so far; `caption` then names the joined column.
        user_columns: canonical names to columns, as the user says; a single caption column named there is used alone.
        lines: notes for people; added to.
    """
    caption = names.get("caption")
    if caption is None or "caption" in raw.known:
        return raw
    named = caption_names(raw.columns.column_names, user_columns)
    if len(named) == 1:
        return raw
    chosen = named or text_columns(raw, names) or caption_family(raw.columns.schema, caption)
    chosen = [caption, *(c for c in chosen if c != caption and c not in names.values())]
    others = [c for c in caption_like(raw.columns.schema) if c not in chosen and c not in names.values()]
    if len(chosen) > 1:
        lines[:] = [line for line in lines if not line.startswith("caption = ")]
        raw, names["caption"] = _joined(raw, chosen, "language" in names)
        shown = ", ".join(map(repr, chosen))
        lines.append(
            f"caption = columns {shown}: each is a caption of the image (one only: {_setting(chosen[:1])})"
        )
    if others and not named:
        shown = ", ".join(map(repr, others))
        lines.append(f"not read as captions: {shown} (to read them as well: {_setting([*chosen, *others])})")
    return raw


def _setting(columns: Sequence[str]) -> str:
    value = ", ".join(columns)
    return f"data.columns.caption={value}" if value.isidentifier() else f'data.columns.caption="{value}"'


def _joined(raw: Raw, chosen: Sequence[str], has_language: bool) -> tuple[Raw, str]:
    """Return the rows with the joined column of lists, and its name."""
    held = [raw.columns.column(raw.columns.column_names.index(column)).to_pylist() for column in chosen]
    endings = [None if has_language else _language(column) for column in chosen]
    rows = []
    for cells in zip(*held, strict=True):
        texts = [(text, end) for cell, end in zip(cells, endings, strict=True) for text in _texts(cell)]
        rows.append(texts or None)
    kind: pa.DataType = pa.list_(pa.string())
    values: list[Any] = [None if row is None else [text for text, _ in row] for row in rows]
    if all(endings):
        kind = pa.list_(pa.struct([("text", pa.string()), ("language", pa.string())]))
        values = [
            None if row is None else [{"text": text, "language": end} for text, end in row] for row in rows
        ]
    name = ", ".join(chosen)
    odd = {name: {row: why for column in reversed(chosen) for row, why in raw.odd.get(column, {}).items()}}
    return replace(
        raw,
        columns=raw.columns.append_column(name, pa.array(values, kind)),
        odd={**raw.odd, **odd} if odd[name] else raw.odd,
    ), name


def _texts(cell: Any) -> list[str]:
    """Return the captions in a cell that are not empty."""
    return [
        text
        for text in (cell if isinstance(cell, list) else [cell])
        if isinstance(text, str) and trimmed(text)
    ]


def _language(column: str) -> str | None:
    """Return the language at the end of a column's name, or `None`."""
    ending = trimmed(column).replace("-", "_").replace(".", "_").replace(" ", "_").rpartition("_")[2]
    return ending if are_languages([ending]) else None
