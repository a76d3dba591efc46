"""Rows that form pairs of images, as in MMVP-VLM, Winoground and NLVR: `pair`, `image`, `caption`, maybe `pattern`.

Two rows with the same value of `pair` form a pair. Each has the caption of its image; or only one row has a caption,
which then is true of its image and false of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from everclip.data.table import Table
from everclip.data.wording import counted
from everclip.errors import DataError
from everclip.templates import PLACEHOLDER, filled

PAIR, PATTERN, TEMPLATE = "pair", "pattern", "template"
"""The columns: which rows form a pair; the kind of difference; the text around each caption, with `{}` in its place."""


_NAMED = 5
"""Pairs that a message names."""


def whole_pairs(table: Table, template: str | None, say: Callable[[str], None] = lambda line: None) -> Table:
    """Return the rows of whole pairs, row by row of each pair; the row with a caption comes first.

    Args:
        table: with the columns `pair` and `caption`.
        template: text around the captions; default: each row's own (column `template`), else the caption alone.
        say: called with a line for people about rows that are left out.

    Raises:
        DataError: for a pair of more than two rows, without a caption, or of two patterns; or if there is no pair.
    """
    for column in (PAIR, "caption"):
        if not table.has(column):
            raise DataError(
                f"{table.name}: pairs need a column {column!r}; columns are {', '.join(table.column_names)}."
            )
    rows_of: dict[str, list[int]] = {}
    for row, value in enumerate(table.column(PAIR)):
        if value not in (None, ""):
            rows_of.setdefault(str(value), []).append(row)
    alone = [name for name, rows in rows_of.items() if len(rows) == 1]
    if alone:
        named = ", ".join(
            f"{name!r} (only id {table.ids[rows_of[name][0]]} is there)" for name in alone[:_NAMED]
        )
        more = f" and {len(alone) - _NAMED:,} more" if len(alone) > _NAMED else ""
        left = counted(len(alone), "pair")
        say(f"{table.name}: {left} left out, since one of its two rows is missing: {named}{more}")
    if unmarked := len(table) - sum(map(len, rows_of.values())):
        say(f"{table.name}: {counted(unmarked, 'row')} without a value of `pair` left out")
    captions = _captions(table, template)
    kept: list[int] = []
    for name, rows in rows_of.items():
        if len(rows) > 1:
            _check(table, name, rows, captions)
            kept += sorted(rows, key=lambda row: captions[row] is None)
    if not kept:
        raise DataError(f"{table.name}: there is no pair: no two rows have the same value of `pair`.")
    return table.with_column("caption", captions).select(kept)


def _captions(table: Table, template: str | None) -> list[str | None]:
    own = table.column(TEMPLATE) if table.has(TEMPLATE) else [None] * len(table)
    texts = [template or text or PLACEHOLDER for text in own]
    return [
        filled(text, str(caption)) if caption not in (None, "") else None
        for text, caption in zip(texts, table.column("caption"), strict=True)
    ]


def _check(table: Table, name: str, rows: Sequence[int], captions: Sequence[str | None]) -> None:
    """Refuse what is no pair.

    Raises:
        DataError: that names the pair and its rows.
    """
    ids = ", ".join(table.ids[row] for row in rows[:4])
    if len(rows) > 2:
        raise DataError(
            f"{table.name}: pair {name!r} has {len(rows)} rows (ids {ids}); a pair has two. If `pair` means something "
            "else here: --kind retrieval, or data.columns.pair= for no such column."
        )
    if all(captions[row] is None for row in rows):
        raise DataError(f"{table.name}: pair {name!r} (ids {ids}) has no caption.")
    if table.has(PATTERN):
        patterns = [table.value(PATTERN, row) for row in rows]
        if patterns[0] != patterns[1]:
            raise DataError(
                f"{table.name}: pair {name!r} (ids {ids}) has two patterns, {patterns[0]!r} and {patterns[1]!r}."
            )


def captions_of_pairs(table: Table) -> list[str]:
    """Return a caption per row of whole pairs: its own, or that of its pair's first row."""
    captions = table.column("caption")
    return [str(own if own is not None else captions[row - row % 2]) for row, own in enumerate(captions)]


def with_two_captions(table: Table) -> npt.NDArray[np.bool_]:
    """Return `(P,)`: whether both rows of each whole pair have a caption."""
    return np.array([caption is not None for caption in table.column("caption")[1::2]], dtype=np.bool_)


def patterns_of_pairs(table: Table) -> list[str | None]:
    """Return the pattern of each whole pair; `None` without one."""
    found = table.column(PATTERN)[::2] if table.has(PATTERN) else [None] * (len(table) // 2)
    return [None if pattern in (None, "") else str(pattern) for pattern in found]
