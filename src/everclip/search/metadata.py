"""Metadata of items: the kind of each column, and its values as they are stored and shown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from everclip.data.pictures.rendering import COLUMN as RENDERING
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.search.records import Column, Kind

SEPARATOR = "\x1f"
"""Around each entry of a list: `contains` then finds whole entries only."""

INTERNAL = frozenset({"id", "image_id", "image", "class_key", "concept", "pair", RENDERING})
"""Columns that are no metadata."""

ARROW: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "list": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "time": pa.timestamp("us", "UTC"),
}
TRUE, FALSE = ("true", "yes"), ("false", "no")


def parse(text: str, kind: Kind) -> Any:
    """Return a text as a value of a kind.

    Raises:
        ValueError: if it is none.
    """
    if kind == "int":
        return _int(text)
    if kind == "float":
        value = float(text)
        if not math.isfinite(value) or not text.isascii() or "_" in text:  # `1_2` is a name
            raise ValueError(text)
        return value
    if kind == "bool":
        if text.lower() not in (*TRUE, *FALSE):
            raise ValueError(text)
        return text.lower() in TRUE
    if kind == "time":
        return utc(datetime.fromisoformat(text))
    if SEPARATOR in text:
        raise ValueError(text)
    return text


def utc(value: date | datetime) -> datetime:
    """Return a time in UTC; one without a zone is taken as UTC."""
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _int(text: str) -> int:
    value = int(text)
    if str(value) != text.strip() or abs(value) >= 2**63:
        raise ValueError(text)
    return value


def kind_of(values: Sequence[Any], type_: pa.DataType) -> Kind | None:
    """Return the kind of a column; texts that all are numbers or times count as such. `None`: it is not kept."""
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_integer(type_):
        return "int"
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "float"
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return "time"
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return "list"
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        return None
    texts = [value for value in values if value not in (None, "")]
    for kind in ("int", "float", "time"):
        if texts and all(_is(text, kind) for text in texts):
            return kind
    return "text"


def _is(text: str, kind: Kind) -> bool:
    if kind == "float" and re.match(r"[+-]?0\d", text):
        return False  # 007 is a name
    try:
        parse(text, kind)
    except (ValueError, OverflowError):  # a time in year 1 may lie before it in UTC
        return False
    return True


def stored(value: Any, column: Column, where: str) -> Any:
    """Return a value of the data as it is stored.

    Raises:
        DataError: if it does not fit the kind of its column; names `where`.
    """
    if value is None or (value == "" and column.kind not in ("text", "list")):
        return None
    try:
        return _converted(value, column.kind)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{where}: {str(value)[:60]!r} in column {column.name!r} is no {column.kind}, as its other values in the "
            "index are. Mend it, or give the column another name."
        ) from error


def _converted(value: Any, kind: Kind) -> Any:
    if kind == "list":
        entries = value if isinstance(value, list) else [value]
        return "".join([SEPARATOR, *(f"{parse(str(entry), 'text')}{SEPARATOR}" for entry in entries)])
    if kind == "text":
        return str(value)
    if isinstance(value, str):
        return parse(value, kind)
    if kind == "time":
        if not isinstance(value, date):
            raise TypeError
        return utc(value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise TypeError
        return value
    if kind == "int":
        if int(value) != value or abs(int(value)) >= 2**63:
            raise ValueError
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def shown(value: Any, kind: Kind) -> Any:
    """Return a stored value for people and JSON."""
    if value is None:
        return None
    if kind == "list":
        return [entry for entry in value.split(SEPARATOR) if entry]
    return value.isoformat() if kind == "time" else value


def new_columns(
    table: Table, known: Sequence[Column], sources: Mapping[str, str]
) -> tuple[list[Column], list[str]]:
    """Return the columns of a table that are not known yet, and the names of those that cannot be kept.

    Args:
        table: with the data.
        known: columns of the index.
        sources: canonical name of a column -> its name in the source.
    """
    names = {column.name for column in known}
    found: list[Column] = []
    left_out: list[str] = []
    schema = table.positions.schema
    for name in table.column_names:
        if name in INTERNAL or name in names:
            continue
        kind = kind_of(table.column(name), schema.field(name).type)
        if kind is None:
            if not pa.types.is_null(schema.field(name).type):
                left_out.append(name)
            continue
        also = sources.get(name)
        found.append(Column(name=name, kind=kind, also=None if also == name else also))
    return found, left_out
