"""Bring columns to canonical form: names as text, dates as ISO text, one row per caption."""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from everclip.data.reading.blanks import is_blank
from everclip.data.reading.caption_languages import by_language
from everclip.data.reading.formats.cells import Odd, is_name, kind_of
from everclip.data.table import replaced
from everclip.errors import DataError

NAMES = ("id", "image_id", "pair", "class_key", "class_name", "concept", "language", "split")
"""Columns with names: numbers in them become text."""

Problem = tuple[int, str, str]
"""Position, reason, detail."""


def plain(columns: pa.Table) -> tuple[pa.Table, list[Problem]]:
    """Convert columns to plain types: categories to their values, dates to ISO text; find text that is not UTF-8.

    Returns:
        The columns, and the rows with text that is not UTF-8.
    """
    problems: list[Problem] = []
    for index, name in enumerate(columns.column_names):
        held = columns.column(index)
        if pa.types.is_dictionary(held.type):
            held = pa.chunked_array([c.dictionary_decode() for c in held.chunks], held.type.value_type)
        if pa.types.is_temporal(held.type):
            held = _iso(held, name)
        if name in ("caption", *NAMES) and (
            pa.types.is_binary(held.type) or pa.types.is_large_binary(held.type)
        ):
            # Checked below: invalid text sets its row aside.
            held = pa.chunked_array([c.cast(pa.binary()).view(pa.string()) for c in held.chunks], pa.string())
        if _has_text(held.type):
            held, bad = _valid_text(held)
            problems += [(i, "bad-utf8", f"column {name!r} is not UTF-8") for i in bad]
        if held is not columns.column(index):
            columns = columns.set_column(index, name, held)
    return columns, problems


def odd_values(odd: Mapping[str, Odd], chosen: Mapping[str, str]) -> list[Problem]:
    """Return the rows whose value in a chosen column has the wrong type.

    Args:
        odd: of `Raw`: per column of the source the values that were not text.
        chosen: canonical names to columns of the source.
    """
    return [
        (row, "bad-row", f"the {wanted} is {kind} (expected text)")
        for wanted, column in chosen.items()
        if wanted in ("image", "caption", *NAMES)
        for row, kind in odd.get(column, {}).items()
        if wanted in ("image", "caption") or not is_name(kind)
    ]


def _iso(held: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return dates and times as ISO text, lengths of time as numbers.

    Raises:
        DataError: for a time zone that is not known here.
    """
    kind = held.type
    if pa.types.is_timestamp(kind):
        if kind.unit == "ns":  # Python has no type for nanoseconds; microseconds are enough to order data.
            held = held.cast(pa.timestamp("us", kind.tz), safe=False)
        values = _moments(held, name)
        times = [v for v in values if isinstance(v, datetime.datetime)]
        midnight = all(v.time() == datetime.time() and v.tzinfo is None for v in times)
        return pa.chunked_array([[_stamp(v, midnight) for v in values]], pa.string())
    if pa.types.is_date(kind) or pa.types.is_time(kind):
        return pa.chunked_array([[_stamp(v, False) for v in _moments(held, name)]], pa.string())
    return held.cast(pa.int64())


Moment = datetime.datetime | datetime.date | datetime.time | str | None


def _moments(held: pa.ChunkedArray, name: str) -> list[Moment]:
    """Return Python's dates and times; a text in place of those outside the years 1 to 9999, which Python lacks."""

    def moment(value: pa.Scalar) -> Moment:
        try:
            return cast("Moment", value.as_py())
        except OverflowError:
            return f"{value.type} {value.value}, outside the years 1 to 9999"

    try:
        return cast("list[Moment]", held.to_pylist())
    except OverflowError:
        return [moment(value) for value in held]
    except pa.ArrowInvalid as error:
        raise DataError(
            f"column {name!r} holds times of the zone {held.type.tz!r}, which is not known here. Correct the name, or "
            "install the time zones of your system (tzdata)."
        ) from error


def _stamp(value: Moment, midnight: bool) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return (
        value.date().isoformat() if midnight and isinstance(value, datetime.datetime) else value.isoformat()
    )


def _has_text(kind: pa.DataType) -> bool:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return True
    if not pa.types.is_nested(kind):
        return False
    return any(_has_text(kind.field(i).type) for i in range(kind.num_fields))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _valid_text(held: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
    """Return a column with null in place of text that is not UTF-8, and the positions of that text."""
    try:
        held.validate(full=True)
        return held, []
    except pa.ArrowInvalid:
        pass
    values, bad = [], []
    for i in range(len(held)):
        try:
            values.append(held[i].as_py())
        except UnicodeDecodeError:
            values.append(None)
            bad.append(i)
    return pa.chunked_array([pa.array(values, held.type)]), bad


def one_row_per_caption(columns: pa.Table, name: str) -> tuple[pa.Table, Sequence[int]]:
    """Make one row per caption if rows hold lists of captions.

    A list may hold texts, or structs with the text (`text`, `caption` or `raw`) and its language (`language`, `lang`
    or `locale`); a struct may also hold a text per language (`en`, `de`). Rows of one image keep their `id` with a
    number, and share their `image_id` (later: its content).

    Args:
        columns: with canonical names.
        name: of the source, for messages.

    Returns:
        The columns, and the original position of each row. A row without a caption stays one row.
    """
    columns = _text_field(by_language(columns), name)
    kind = columns.schema.field("caption").type if "caption" in columns.column_names else None
    if kind is None or not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return columns, range(columns.num_rows)
    held = columns.column("caption")
    text, language = _caption_fields(held.type.value_type, name)
    origin, captions, languages, order = [], [], [], []
    for row, given in enumerate(held.to_pylist()):
        for number, one in enumerate(given or [None]):
            origin.append(row)
            order.append(number)
            captions.append(one if text is None or one is None else one.get(text))
            languages.append(None if language is None or one is None else one.get(language))
    rows = np.asarray(origin, np.int64)
    columns = columns.remove_column(columns.column_names.index("caption")).take(pa.array(rows))
    columns = columns.append_column("caption", pa.array(captions))
    if language is not None and "language" not in columns.column_names:
        columns = columns.append_column("language", pa.array(languages, pa.string()))
    if "id" in columns.column_names:
        several = set(rows[np.asarray(order) > 0].tolist())
        ids = [
            _text(i) if i is None or row not in several else f"{_text(i)}-{number}"
            for i, row, number in zip(columns.column("id").to_pylist(), origin, order, strict=True)
        ]
        columns = replaced(columns, "id", pa.array(ids, pa.string()) if several else columns.column("id"))
    return columns, origin


def _text_field(columns: pa.Table, name: str) -> pa.Table:
    """Replace struct captions by their text field."""
    kind = columns.schema.field("caption").type if "caption" in columns.column_names else None
    if kind is None or not pa.types.is_struct(kind):
        return columns
    text, _ = _caption_fields(kind, name)
    return replaced(
        columns, "caption", pc.struct_field(columns.column("caption"), kind.get_field_index(text))
    )


def _caption_fields(kind: pa.DataType, name: str) -> tuple[str | None, str | None]:
    if not pa.types.is_struct(kind):
        return None, None
    names = [kind.field(i).name for i in range(kind.num_fields)]
    text = next((n for n in ("text", "caption", "raw") if n in names), None)
    if text is None:
        raise DataError(
            f"{name}: the captions are objects of {', '.join(names)}; expected texts, or objects with a field `text`. "
            "Write the text that is the caption into a column of its own."
        )
    return text, next((n for n in ("language", "lang", "locale") if n in names), None)


def _text(value: Any) -> str | None:
    """Return a name as text; whole numbers lose the `.0` that a missing value in the column gave them."""
    if value is None or isinstance(value, float):
        if value is None or math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    return value if isinstance(value, str) else str(value)


def with_plain_names(columns: pa.Table, source: str, numeric_time: bool) -> tuple[pa.Table, list[Problem]]:
    """Convert names to text, check captions and keywords, and parse numbers in the time column of a text file.

    Args:
        columns: with canonical names.
        source: shown in errors.
        numeric_time: whether all cells are text, so that numbers must be parsed.

    Returns:
        The columns, and the rows whose caption or label has the wrong type.
    """
    problems: list[Problem] = []
    for name in NAMES:
        if name not in columns.column_names:
            continue
        held = columns.column(name)
        if pa.types.is_list(held.type):
            held = _only_names(held, name, source)
            columns = replaced(columns, name, held)
        if pa.types.is_nested(held.type) or pa.types.is_binary(held.type):
            raise DataError(f"{source}: column {name!r} holds {held.type}; expected text or whole numbers.")
        values = held.to_pylist()
        if pa.types.is_floating(held.type) and name in ("class_key", "class_name"):
            broken = [i for i, v in enumerate(values) if v is not None and math.isnan(v)]
            problems += [(i, "missing-label", f"column {name!r} is NaN") for i in broken]
        if not pa.types.is_string(held.type):
            columns = replaced(columns, name, pa.array([_text(v) for v in values], pa.string()))
        if name in ("class_key", "class_name"):
            columns = replaced(columns, name, _composed(columns.column(name)))
    columns = _captions(columns, problems)
    if "keywords" in columns.column_names:
        kind = columns.column("keywords").type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_null(kind)):
            raise DataError(
                f"{source}: column 'keywords' holds {kind}; expected lists of texts (Parquet or JSON lines; a "
                "CSV cannot hold them)."
            )
        if not pa.types.is_null(kind) and not _is_text(kind.value_type):
            raise DataError(
                f"{source}: column 'keywords' holds lists of {kind.value_type}; expected lists of texts."
            )
    if "time" in columns.column_names:
        times = _times if numeric_time else _whole
        columns = replaced(columns, "time", times(_without_blanks(columns.column("time"))))
    return columns, problems


def _only_names(held: pa.ChunkedArray, name: str, source: str) -> pa.Array:
    """Return the single name of each list.

    Raises:
        DataError: for a row with several names.
    """
    values = held.to_pylist()
    several = next((i for i, given in enumerate(values) if given is not None and len(given) > 1), None)
    if several is not None:
        raise DataError(
            f"{source}: column {name!r} holds lists, and row {several + 1} has {len(values[several])} names; expected "
            "one per row. Keep one of them, or take each as a caption (data.columns.caption=NAME)."
        )
    return pa.array([given[0] if given else None for given in values], held.type.value_type)


def _composed(held: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Return names in composed Unicode form (NFC): macOS writes `é` as two characters; it is the same class."""
    known = {v: unicodedata.normalize("NFC", v) for v in pc.unique(held).to_pylist() if v is not None}
    if all(v == composed for v, composed in known.items()):
        return held
    return pa.array([None if v is None else known[v] for v in held.to_pylist()], pa.string())


def _without_blanks(held: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts with null in place of those that hold only blanks."""
    if not (pa.types.is_string(held.type) or pa.types.is_large_string(held.type)):
        return held
    blank = pc.equal(pc.utf8_trim_whitespace(held), pa.scalar("", held.type))
    return pc.if_else(blank, pa.scalar(None, held.type), held) if pc.any(blank).as_py() else held


def _whole(held: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return integers if all floats are whole, and null for NaN: a missing value turns years into 2024.0."""
    if not pa.types.is_floating(held.type):
        return held
    values = [None if v is None or math.isnan(v) else v for v in held.to_pylist()]
    whole = all(v is None or (v.is_integer() and abs(v) < 2**53) for v in values)
    return pa.chunked_array([pa.array(values).cast(pa.int64() if whole else pa.float64())])


def _captions(columns: pa.Table, problems: list[Problem]) -> pa.Table:
    """Return captions as text; set aside captions of other types and those with a NUL character."""
    if "caption" not in columns.column_names:
        return columns
    held = columns.column("caption")
    values = held.to_pylist()
    if not (pa.types.is_string(held.type) or pa.types.is_large_string(held.type)):
        values = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
        found = [(i, v) for i, v in enumerate(values) if v is not None and not isinstance(v, str)]
        problems += [(i, "bad-row", f"the caption is {kind_of(v)} (expected text)") for i, v in found]
    texts = [v if isinstance(v, str) else None for v in values]
    problems += [
        (i, "bad-row", f"the caption holds a NUL character: {v[:60]!r}; is the file of another encoding?")
        for i, v in enumerate(texts)
        if v is not None and "\0" in v
    ]
    return replaced(columns, "caption", pa.array(texts, pa.string()))


_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")


def _times(held: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return numbers if every cell holds one, else the text; `007` and dates stay text."""
    if not pa.types.is_string(held.type):
        return held
    given = [v for v in pc.unique(held).to_pylist() if v is not None]
    if given and all(_WHOLE.fullmatch(v) for v in given):
        return held.cast(pa.int64())
    if given and all(re.fullmatch(r"-?\d+\.\d+|-?(0|[1-9]\d*)", v) for v in given):
        return held.cast(pa.float64())
    return held


def with_texts(columns: pa.Table, set_aside: Container[int]) -> tuple[pa.Table, list[Problem]]:
    """Replace empty captions by the class name; set samples with neither aside.

    Data without any caption have no column `caption`: they are learned and measured by their class names.

    Args:
        columns: with canonical names.
        set_aside: rows that are already set aside.
    """
    count = columns.num_rows
    name = next((n for n in ("class_name", "class_key") if n in columns.column_names), None)
    classes = columns.column(name).to_pylist() if name else [None] * count
    class_texts = [c if c is not None and not is_blank(c) else None for c in classes]
    if "caption" not in columns.column_names:
        return columns, [
            (i, "missing-label", f"column {name!r} is empty")
            for i, c in enumerate(class_texts)
            if c is None and i not in set_aside
        ]
    captions = columns.column("caption").to_pylist()
    filled = [
        c if c is not None and not is_blank(c) else s for c, s in zip(captions, class_texts, strict=True)
    ]
    paired = _in_pairs(columns, filled)
    problems = [
        (i, "empty-caption", "and no class name instead" if name else "")
        for i, c in enumerate(filled)
        if c is None and i not in set_aside and i not in paired
    ]
    if any(c is not None and not is_blank(c) for c in captions):
        columns = replaced(columns, "caption", pa.array(filled, pa.string()))
    elif name:
        columns = columns.remove_column(columns.column_names.index("caption"))
    return columns, problems


def _in_pairs(columns: pa.Table, captions: Sequence[str | None]) -> set[int]:
    """Return the rows without a caption whose pair's other row has one: that caption is false of their image."""
    if "pair" not in columns.column_names:
        return set()
    rows_of: dict[str, list[int]] = {}
    for row, pair in enumerate(columns.column("pair").to_pylist()):
        if pair is not None:
            rows_of.setdefault(pair, []).append(row)
    two = [rows for rows in rows_of.values() if len(rows) == 2]
    return {
        row
        for rows in two
        if any(captions[r] is not None for r in rows)
        for row in rows
        if captions[row] is None
    }
