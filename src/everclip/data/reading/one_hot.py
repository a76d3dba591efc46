"""Read tables with a column of 0 and 1 per class (Roboflow's `_classes.csv`, Kaggle)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from everclip.data.reading.columns import is_known_name
from everclip.data.reading.formats.raw import Raw

_ONE = frozenset(("1", "1.0", "true"))
_ZERO = frozenset(("0", "0.0", "false", "", "-1", "-1.0"))
CLASS = "class_name"


def with_one_hot_classes(
    raw: Raw, names: dict[str, str], user_columns: Mapping[str, str]
) -> tuple[Raw, list[str]]:
    """Add the class of every row if each class has a column of 0 and 1.

    Args:
        raw: the rows; the image's column is known.
        names: canonical names to columns so far; `class_name` is added.
        user_columns: canonical names to columns, as the user says; these are not guessed.

    Returns:
        The rows, and lines for people. A row with no class or several is set aside.
    """
    if "image" not in names or {"caption", CLASS, "class_key"} & (set(names) | set(user_columns)):
        return raw, []
    marks = one_hot_columns(raw, names)
    held = [[c for c, column in marks.items() if column[row]] for row in range(raw.columns.num_rows)]
    if len(marks) < 2 or 2 * sum(len(classes) == 1 for classes in held) < len(held):
        return raw, []
    column = pa.array([classes[0] if len(classes) == 1 else None for classes in held], pa.string())
    flaws = dict(raw.flaws)
    for row, classes in enumerate(held):
        if not classes:
            flaws[row] = ("missing-label", f"no class is marked (of {', '.join([*marks][:5])})")
        elif len(classes) > 1:
            flaws[row] = (
                "missing-label",
                f"{len(classes)} classes are marked ({', '.join(classes[:5])}); expected one",
            )
    names[CLASS] = CLASS
    table = raw.columns.append_column(CLASS, column)
    lines = [f"{CLASS} = the column that holds 1, of {len(marks)} ({', '.join([*marks][:5])})"]
    return replace(raw, columns=table, flaws=flaws), lines


def one_hot_columns(raw: Raw, names: Mapping[str, str]) -> dict[str, list[bool]]:
    """Return the columns of 0 and 1 (-1: unknown or 0), with the rows that each marks."""
    return {
        column: found
        for column in raw.columns.column_names
        if column not in names.values()
        and not is_known_name(column)
        and (found := _marked(raw.columns.column(column)))
    }


def _marked(column: pa.ChunkedArray) -> list[bool] | None:
    """Return for each row whether it holds 1; `None` if other values than 0, 1, -1 or nothing occur."""
    kind = column.type
    if not (
        pa.types.is_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_floating(kind)
    ):
        return None
    cells = ["" if v is None else str(v).strip().lower() for v in column.to_pylist()]
    kinds = set(cells)
    return [cell in _ONE for cell in cells] if kinds <= _ONE | _ZERO and kinds != {""} else None
