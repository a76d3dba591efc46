"""Turn the rows of a result into the cells that metrics read: which sets, at which rows, under which protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from everclip.evaluation.cells import Array, Cells, metric_value
from everclip.evaluation.headline import metric_of
from everclip.evaluation.old_and_new import OldAndNew, old_and_new
from everclip.evaluation.results import Column, Results, Row, Score
from everclip.metrics import Sets, metrics

OLD_AND_NEW: dict[Sets, str] = {"old": "old", "new": "new", "everything": "everything"}
"""The sets that are scored in the label space of all sets -> their field of `OldAndNew`."""


def learned_after(rows: Sequence[Row], tasks: Sequence[int]) -> list[set[int]]:
    """Return for every row the tasks that its model has learned.

    After row 0, a row without a task is the row of a method that learns everything at once.

    Args:
        rows: the rows of a result, from row 0 on.
        tasks: the indices of all tasks.
    """
    learned: set[int] = set()
    by_row = []
    for row in rows:
        if row.index > 0:
            learned |= set(tasks) if row.task is None else {row.task}
        by_row.append(set(learned))
    return by_row


@dataclass(frozen=True)
class Measurements:
    """The rows and columns of a result, with its headline and protocols."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    headline: Mapping[str, str]
    protocols: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, results: Results) -> Measurements:
        """Return the measurements of a result."""
        return cls(results.rows, results.columns, results.headline, results.protocols)

    @cached_property
    def together(self) -> OldAndNew | str:
        """How old and new are scored together, or why they are not."""
        return old_and_new(self.columns, self.protocols, self.headline)

    @cached_property
    def learned(self) -> list[set[int]]:
        """The tasks that the model of each row has learned, as far as they have columns."""
        return learned_after(self.rows, [c.task for c in self.columns if c.task is not None])

    def protocol(self, sets: Sets) -> str:
        """Return the protocol of sets: the headline's, or the one with the label space of all sets."""
        if sets in OLD_AND_NEW and isinstance(self.together, OldAndNew):
            return self.together.protocol
        return self.headline["protocol"]

    def columns_of(self, sets: Sets) -> tuple[Column, ...]:
        """Return the columns of sets, tasks in the order of learning; none if the sets are not scored together."""
        if sets in OLD_AND_NEW:
            return () if isinstance(self.together, str) else self.together.columns(OLD_AND_NEW[sets])
        columns = [column for column in self.columns if column.group == sets]
        return tuple(
            sorted(columns, key=lambda c: -1 if c.task is None else c.task) if sets == "task" else columns
        )

    def score(self, row: int, column: Column, protocol: str) -> Score | None:
        """Return the score that a column shows at a row."""
        name = metric_of(column, self.headline)
        return self.rows[row].scores.get(column.name, {}).get(protocol, {}).get(name)

    def cells(self, sets: Sets, columns: Sequence[Column] | None = None) -> Cells:
        """Return the cells of sets at all rows.

        Args:
            sets: the sets.
            columns: use only these columns of the sets.
        """
        chosen = self.columns_of(sets) if columns is None else columns
        if not self.rows:
            return Cells.of([None] * len(chosen), [])
        protocol, together = self.protocol(sets), self.together
        pooled = together if sets in OLD_AND_NEW and isinstance(together, OldAndNew) else None
        table, samples, counted = [], [], []
        for row, learned in enumerate(self.learned):
            scores = [self.score(row, column, protocol) for column in chosen]
            table.append([None if score is None else score.value for score in scores])
            if pooled is None:  # stage metrics weigh columns by their images
                samples.append([column.samples for column in chosen])
                counted.append([column.task is None or column.task in learned for column in chosen])
            else:  # pooled metrics weigh columns by their queries
                scored = pooled.columns(OLD_AND_NEW[sets], learned)
                samples.append([score.n if score else 0 for score in scores])
                counted.append([column in scored for column in chosen])
        cells = Cells.of(table[0], table[1:], samples, counted, pooled is not None and pooled.grows)
        if not any(row.at for row in self.rows):
            return cells
        return replace(cells, at=tuple(tuple(row.at) for row in self.rows), classes=self._per_class(chosen))

    def _per_class(self, columns: Sequence[Column]) -> Array:
        """Return the accuracy of each class of the columns at every row `(R, K)`; NaN where it is not measured."""
        names = {column.name for column in columns}
        of_rows = [
            {f"{name}/{key}": value for name in names for key, value in row.per_class.get(name, {}).items()}
            for row in self.rows
        ]
        keys = sorted({key for of_row in of_rows for key in of_row})
        values = [[of_row.get(key) for key in keys] for of_row in of_rows]
        table = [[math.nan if value is None else value for value in row] for row in values]
        return np.array(table, dtype=np.float64).reshape(len(self.rows), len(keys))

    def values(self, *sets: Sets) -> dict[str, float | None]:
        """Return all metrics of these sets at the last row by name; `None` if undefined.

        Metrics of a stream that is seen once are left out for other streams.
        """
        cells = {name: self.cells(name) for name in sets}
        once = any(row.at for row in self.rows)
        return {
            name: metric_value(entry, cells[entry.sets])
            for name, entry in metrics("stream").items()
            if entry.sets in cells and (once or "seen once" not in entry.needs)
        }
