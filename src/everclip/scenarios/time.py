"""Tasks by time: listed conditions in their order, one task per period in the data, or parts of equal size."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

from everclip.data.reading.formats.system_files import brief
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.conditions import matcher, normalised, require_column, row_of
from everclip.scenarios.groups import Group
from everclip.scenarios.periods import empty_between, period_of
from everclip.scenarios.reading import Reader
from everclip.scenarios.spec import ScenarioSpec
from everclip.scenarios.splits import Parts


def groups(spec: ScenarioSpec, parts: Parts, reader: Reader) -> list[Group]:
    """Return one group per listed task or per period; rows of the base belong to no period."""
    column = spec.column or "time"
    if spec.tasks:
        if any(column in task.where for task in spec.tasks):
            reader.notes += _undated(parts, column)
        return [
            Group(task.name, parts.keep(matcher(task.where, f"tasks.{i}.where")), key=f"tasks.{i}")
            for i, task in enumerate(spec.tasks)
        ]
    require_column(parts.train, column, f"tasks by {spec.every or f'{spec.parts} parts'}")
    known = None if spec.base is None or spec.base.data is not None else spec.base.where
    later = parts if known is None else parts.keep(lambda table: _rest(table, known))
    name_of = (
        partial(period_of, unit=spec.every)
        if spec.every is not None
        else equal_parts(later.train, column, spec.parts or 1)
    )
    of_parts = [
        {} if t is None else _periods(t, column, name_of) for t in (later.train, later.val, later.test)
    ]
    names = _ordered({name for found in of_parts for name in found}, parts.train, column)
    train, val, test = of_parts
    reader.notes += _undated(later, column)
    if empty := empty_between([str(name) for name in names], spec.every or ""):
        reader.notes.append(
            f"{parts.train.name}: no rows in {brief(empty)}, so there is no task of "
            + ("this period" if len(empty) == 1 else "these periods")
        )
    return [
        Group(
            str(name),
            Parts(
                later.train.select(train.get(name, [])),
                None if later.val is None else later.val.select(val.get(name, [])),
                later.test.select(test.get(name, [])),
            ),
        )
        for name in names
    ]


def _undated(parts: Parts, column: str) -> list[str]:
    """Return a note that counts the rows without a time, if there are any."""
    tables = [t for t in (parts.train, parts.val, parts.test) if t is not None and t.has(column)]
    undated = sum(normalised(value) is None for table in tables for value in table.column(column))
    return [f"{parts.train.name}: {undated:,} rows without {column!r} belong to no task"] if undated else []


def _rest(table: Table, where: dict[str, Any]) -> Table:
    known = matcher(where, "base.where")(table)
    taken = {known.row_key(i) for i in range(len(known))}
    return table.select([i for i in range(len(table)) if table.row_key(i) not in taken])


def equal_parts(table: Table, column: str, count: int) -> Callable[[Any], str]:
    """Return a function from a time to the name of its part; parts have about equally many rows of `table`.

    A time that the table does not have belongs to the part that began last before it.

    Raises:
        DataError: if there are fewer times than parts, or times have no common order.
    """
    sizes = Counter(normalised(value) for value in table.column(column))
    sizes.pop(None, None)
    if len({isinstance(value, str) for value in sizes}) > 1:
        raise DataError(f"{table.name}: {column!r} holds numbers and texts, which have no common order.")
    times, total = sorted(sizes), sum(sizes.values())
    if len(times) < count:
        raise DataError(
            f"{table.name}: {column!r} has {len(times):,} different times, and rows of one time stay together, so "
            f"there are no {count} parts. Set scenario.parts={len(times)} or less."
        )
    before = [0, *accumulate(sizes[value] for value in times)]
    cuts = [0]
    for part in range(1, count):
        wanted = bisect_right(before, part * total / count)
        nearest = min(
            (wanted - 1, wanted), key=lambda at: abs(before[min(at, len(times))] - part * total / count)
        )
        cuts.append(max(cuts[-1] + 1, min(nearest, len(times) - (count - part))))  # each part has a time
    starts = [times[cut] for cut in cuts]
    lasts = [times[cut - 1] for cut in (*cuts[1:], len(times))]
    width = len(str(count))
    names = [
        f"{part + 1:0{width}d}: {first}" + ("" if first == last else f" to {last}")
        for part, (first, last) in enumerate(zip(starts, lasts, strict=True))
    ]

    def part_of(value: Any) -> str:
        try:
            return names[max(0, bisect_right(starts, normalised(value)) - 1)]
        except TypeError as error:
            raise ValueError(f"{value!r} cannot be compared with {starts[0]!r}") from error

    return part_of


def _periods(table: Table, column: str, name_of: Callable[[Any], str | int]) -> dict[str | int, list[int]]:
    """Return period -> positions."""
    found: dict[str | int, list[int]] = {}
    for position, value in enumerate(table.column(column)):
        if normalised(value) is None:
            continue
        try:
            found.setdefault(name_of(value), []).append(position)
        except ValueError as error:
            raise DataError(
                f"{row_of(table, position)}: {column}: {error}. Correct it, choose another `every` or `parts`, or "
                "remove such rows from the data."
            ) from error
    return found


def _ordered(names: set[str | int], table: Table, column: str) -> list[str | int]:
    if not names:
        raise DataError(
            f"{table.name}: no row after the base has a value in {column!r}, so there are no tasks."
        )
    kinds = {type(name) for name in names}
    if len(kinds) > 1:
        shown = ", ".join(repr(min(n for n in names if type(n) is kind)) for kind in (int, str))
        raise DataError(
            f"{table.name}: {column!r} holds numbers and texts ({shown}), which have no common order."
        )
    return sorted(names)
