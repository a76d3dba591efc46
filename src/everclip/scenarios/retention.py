"""The retention suite: sets that are never trained on, and their validation twins, which training may measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from everclip.contracts import EvalSet
from everclip.data.catalog.cards import card_of
from everclip.data.sampling.image_pairs import PAIR
from everclip.data.sampling.multi_image import QUESTION
from everclip.data.sampling.splits import carve
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.base import class_entries
from everclip.scenarios.conditions import matcher, require_column
from everclip.scenarios.measuring import multi_image_set, pair_set
from everclip.scenarios.reading import Reader, with_class
from everclip.scenarios.spec import RetentionSpec

SALT = "everclip-retention-v1"
"""Salt of the hash that carves a twin off a set's own data."""


@dataclass(frozen=True)
class RetentionSet:
    """A retention set and the validation rows of its own data (`None`: its twin comes from those of the stream)."""

    spec: RetentionSpec
    measured: EvalSet
    own_val: Table | None


def retention_set(spec: RetentionSpec, index: int, test: Table | None, reader: Reader) -> RetentionSet:
    """Build a set of the retention suite.

    Args:
        spec: its settings.
        index: its position in the document, for errors.
        test: the stream's test rows, which a set without data of its own chooses from.
        reader: reads its own data.

    Raises:
        DataError: if it holds no rows, or lacks classes or captions.
    """
    key = f"retention.{index}"
    if spec.kind in ("pairs", "multi-image"):
        return RetentionSet(spec, _grouped(spec, test, reader, key), None)
    if spec.data is None:
        assert test is not None  # the spec's own validation
        rows, val = _rows(spec, test, key), None
    else:
        rows = _rows(spec, reader.read(spec.data, f"{key}.data"), key)
        if spec.val is None:
            rows, val = carve(rows, spec.validation, salt=SALT)
        else:
            val = _rows(spec, reader.read(spec.val, f"{key}.val"), key)
    everything = rows if val is None or spec.val is not None else Table.concat([rows, val])
    if len(rows) == 0:
        raise DataError(
            f"{everything.name}: retention set {spec.name!r} holds no rows (condition: {spec.where or 'none'})."
        )
    classes = class_entries(everything, _templates(spec)) if spec.kind == "classification" else None
    return RetentionSet(
        spec, EvalSet(spec.name, spec.kind, rows.renamed(spec.name), None, "retention", classes), val
    )


def _grouped(spec: RetentionSpec, test: Table | None, reader: Reader, key: str) -> EvalSet:
    """Return a set of pairs or of questions: all of its data, since neither has a side of its own to validate on."""
    table = test if spec.data is None else reader.read(spec.data, f"{key}.data")
    assert table is not None  # the spec's own validation
    column, make = (PAIR, pair_set) if spec.kind == "pairs" else (QUESTION, multi_image_set)
    require_column(table, column, f"{key}: kind {spec.kind}")
    rows = matcher(spec.where, f"{key}.where")(table)
    return make(rows, spec.templates, spec.name, reader.notes.append, "retention")


def _templates(spec: RetentionSpec) -> tuple[str, ...]:
    if spec.templates is not None:
        return spec.templates
    if spec.data is not None and spec.data.is_catalog:
        return card_of(str(spec.data.source))[0].texts
    return ("{}",)


def _rows(spec: RetentionSpec, table: Table, key: str) -> Table:
    if spec.class_column is not None:
        table = _with_classes(table, spec.class_column, key)
    column = "class_key" if spec.kind == "classification" else "caption"
    other = "retrieval" if spec.kind == "classification" else "classification"
    require_column(table, column, f"{key}: kind {spec.kind}; the other kind is {other}")
    rows = matcher(spec.where, f"{key}.where")(table)
    return with_class(rows) if spec.kind == "classification" else rows


def _with_classes(table: Table, column: str, key: str) -> Table:
    """Return a table whose classes are the values of another column."""
    require_column(table, column, f"{key}.class_column")
    values = [None if value is None else str(value) for value in table.column(column)]
    return table.with_column("class_key", values).with_column("class_name", values)


def twins(suite: Sequence[RetentionSet], stream_val: Sequence[Table], reader: Reader) -> tuple[EvalSet, ...]:
    """Return the validation twin of every set that has validation rows; add a note for each other set.

    Args:
        suite: the sets.
        stream_val: validation rows of base and tasks, which sets without data of their own choose from.
        reader: collects the notes.
    """
    pool = _without_repeats(stream_val)
    found = []
    for index, one in enumerate(suite):
        if one.spec.kind in ("pairs", "multi-image"):
            what = "pairs" if one.spec.kind == "pairs" else "questions about several images"
            reader.notes.append(
                f"retention set {one.spec.name!r}: {what} have no validation twin, so the guard does not watch them"
            )
            continue
        rows = one.own_val
        if rows is None and pool is not None:
            rows = _rows(one.spec, pool, f"retention.{index}")
        if rows is not None and one.measured.classes is not None:
            rows = with_class(rows, {entry.key for entry in one.measured.classes})
        if rows is None or len(rows) == 0:
            reader.notes.append(
                f"retention set {one.spec.name!r} has no validation twin, so the guard cannot watch it; raise "
                + ("split.validation" if one.spec.data is None else f"retention.{index}.validation")
            )
            continue
        found.append(replace(one.measured, data=rows.renamed(f"{one.spec.name} (validation)")))
    return tuple(found)


def _without_repeats(tables: Sequence[Table]) -> Table | None:
    """Join tables and drop repeated rows: base and tasks may share rows."""
    non_empty = [table for table in tables if len(table)]
    if not non_empty:
        return None
    joined, seen, kept = Table.concat(non_empty), set(), []
    for position in range(len(joined)):
        place = joined.row_key(position)
        if place not in seen:
            seen.add(place)
            kept.append(position)
    return joined.select(kept)
