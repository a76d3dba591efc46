"""Find columns of sides that are not called `split`: `subset`, `Usage`, `is_test`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from everclip.data.reading.columns import plain_name
from everclip.data.reading.formats.raw import Raw
from everclip.data.side_words import side_in
from everclip.errors import DataError

SPLIT = "split"
_NAMES = frozenset(
    (
        "split", "splits", "subset", "set", "phase", "partition", "usage", "dataset", "datasplit", "side",
        "evalstatus", "fold", "folds", "kfold", "foldid",
    )
)  # fmt: skip
_FLAGS = {
    "test": ("istest", "intest", "istestset", "isholdout"),
    "validation": ("isval", "isvalid", "isvalidation"),
    "train": ("istrain", "istraining", "intrain", "istrainingimage"),
}
_TRUE, _FALSE = frozenset(("1", "1.0", "true", "yes")), frozenset(("0", "0.0", "false", "no", ""))
_MOST_MARKS = 20


def with_split_column(
    raw: Raw, names: dict[str, str], user_columns: Mapping[str, str], lines: list[str]
) -> Raw:
    """Use the column whose values are sides as `split`, if no column is called `split`.

    Args:
        raw: the rows.
        names: canonical names to columns so far; `split` is added.
        user_columns: canonical names to columns, as the user says; these are not guessed.
        lines: notes for people; added to.

    Raises:
        DataError: if two columns fit.
    """
    if SPLIT in names or SPLIT in user_columns:
        if names.get(SPLIT):
            lines += _unknown_marks(raw.columns.column(names[SPLIT]), names[SPLIT])
        return raw
    marks = {
        name: _marks(raw.columns, name) for name in raw.columns.column_names if name not in names.values()
    }
    fitting = [name for name, values in marks.items() if values and _are_sides(name, values, raw.split)]
    known = [name for name in fitting if plain_name(name) in _NAMES] or fitting
    if len(known) > 1:
        raise DataError(
            f"{raw.name}: the columns {', '.join(map(repr, known))} could each say the sides. Say which with "
            f"data.columns.split={known[0]} (or data.columns.split= for none)."
        )
    if known:
        names[SPLIT] = SPLIT
        shown = ", ".join(sorted(set(marks[known[0]]))[:4])
        lines.append(
            f"split = column {known[0]!r}, whose values are sides ({shown}; data.columns.split= for none)"
        )
        # A copy: conditions may use the column by its own name.
        values = [None if v is None else str(v) for v in raw.columns.column(known[0]).to_pylist()]
        return replace(raw, columns=raw.columns.append_column(SPLIT, pa.array(values, pa.string())))
    flagged = None if raw.split is not None else _flagged(raw.columns, names)
    if flagged is not None:
        sides, used = flagged
        names[SPLIT] = SPLIT
        lines.append(f"split = column {used}, of 0 and 1 (data.columns.split= for none)")
        return replace(raw, columns=raw.columns.append_column(SPLIT, pa.array(sides, pa.string())))
    lines += [
        f"column {name!r} may say sides, but its values ({', '.join(sorted(set(values))[:4])}) name none, so it is not "
        f"read: write train, val or test, and say data.columns.split={name}"
        for name, values in marks.items()
        if plain_name(name) in _NAMES and len(set(values)) > 1 and not any(map(side_in, set(values)))
    ]
    return raw


def _marks(columns: pa.Table, name: str) -> list[str]:
    """Return the distinct values of a column as texts, if they are few and short; else nothing."""
    kind = columns.schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    plain = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    if not plain or pa.types.is_nested(kind):
        return []
    distinct = columns.column(name).unique().to_pylist()
    if not 0 < len(distinct) <= _MOST_MARKS or any(len(str(value)) > 40 for value in distinct):
        return []
    return [str(value) for value in distinct if value is not None and str(value).strip()]


def _are_sides(name: str, marks: Sequence[str], file: str | None) -> bool:
    """Whether all values of a column are sides: several sides, or one in a column with a known name."""
    sides = {side_in(mark) for mark in marks}
    if None in sides or all(mark.strip().lower() in ("true", "false") for mark in marks):
        return False
    return len(sides) > 1 or (file is None and plain_name(name) in _NAMES)


def _flagged(columns: pa.Table, names: Mapping[str, str]) -> tuple[list[str], str] | None:
    """Return the sides from columns of 0 and 1 (`is_test`), and the names of these columns."""
    found: dict[str, tuple[str, list[bool]]] = {}
    for side, words in _FLAGS.items():
        for name in columns.column_names:
            if name in names.values() or plain_name(name) not in words or side in found:
                continue
            flags = _flags(columns.column(name).to_pylist())
            # A column `is_valid` that is true for most rows says that the images are valid.
            if (
                flags
                and any(flags)
                and not all(flags)
                and (side != "validation" or 2 * sum(flags) <= len(flags))
            ):
                found[side] = (name, flags)
    if not found:
        return None
    rest = "test" if set(found) == {"train"} else "train"
    sides = [
        next(
            (side for side in ("test", "validation", "train") if side in found and found[side][1][row]), rest
        )
        for row in range(columns.num_rows)
    ]
    return sides, ", ".join(repr(name) for name, _ in found.values())


def _flags(values: Sequence[Any]) -> list[bool]:
    """Return values of 0 and 1 as booleans; nothing if there are other values."""
    plain = ["" if value is None else str(value).strip().lower() for value in values]
    return [value in _TRUE for value in plain] if set(plain) <= _TRUE | _FALSE else []


def _unknown_marks(column: pa.ChunkedArray, name: str) -> list[str]:
    """Return a line if no value of the split column is a side."""
    if pa.types.is_nested(column.type):
        return []  # lists and objects are refused by their kind
    marks = sorted({str(v) for v in column.unique().to_pylist() if v is not None and str(v).strip()})
    if not marks or any(map(side_in, marks)):
        return []
    shown = ", ".join(map(repr, marks[:4])) + (f" and {len(marks) - 4} more" if len(marks) > 4 else "")
    return [f"split = column {name!r}: {shown} name no side (train, val, test), so no row is marked as test"]
