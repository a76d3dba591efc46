"""What was measured of a run, as the cells that metrics read: which sets, at which rows, under which protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from everclip.evaluation.cells import Cells, metric_value
from everclip.evaluation.headline import metric_of
from everclip.evaluation.results import Column, Results, Row, Score
from everclip.evaluation.together import Together, together
from everclip.metrics import Sets, metrics

TOGETHER: dict[Sets, str] = {"old": "old", "new": "new", "everything": "everything"}
"""The sets of metrics that are read among the answers of all sets, and the part of `Together` that they are."""


def learned_after(rows: Sequence[Row], tasks: Sequence[int]) -> list[set[int]]:
    """Return for every row the tasks that its model has learned.

    A row of no task after row 0 is that of a method that learns everything at once.

    Args:
        rows: the rows of a result, from row 0 on.
        tasks: the indices of all tasks.
    """
    known: set[int] = set()
    found = []
    for row in rows:
        if row.index > 0:
            known |= set(tasks) if row.task is None else {row.task}
        found.append(set(known))
    return found


@dataclass(frozen=True)
class Measurements:
    """The rows and columns of a result, and how its headline reads them."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    headline: Mapping[str, str]
    protocols: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, results: Results) -> Measurements:
        """Return those of a result."""
        return cls(results.rows, results.columns, results.headline, results.protocols)

    @cached_property
    def together(self) -> Together | str:
        """How old and new are scored together, or why they are not."""
        return together(self.columns, self.protocols, self.headline)

    @cached_property
    def learned(self) -> list[set[int]]:
        """For every row, the tasks of the columns that its model has learned."""
        return learned_after(self.rows, [c.task for c in self.columns if c.task is not None])

    def protocol(self, sets: Sets) -> str:
        """Return the protocol under which sets are read: the headline's, or that of all answers."""
        if sets in TOGETHER and isinstance(self.together, Together):
            return self.together.protocol
        return self.headline["protocol"]

    def columns_of(self, sets: Sets) -> tuple[Column, ...]:
        """Return the columns of sets, tasks in the order of learning; none where they are not scored together."""
        if sets in TOGETHER:
            return () if isinstance(self.together, str) else self.together.columns(TOGETHER[sets])
        found = [column for column in self.columns if column.group == sets]
        return tuple(
            sorted(found, key=lambda c: -1 if c.task is None else c.task) if sets == "task" else found
        )

    def score(self, row: int, column: Column, protocol: str) -> Score | None:
        """Return the score that stands for a column at a row."""
        name = metric_of(column, self.headline)
        return self.rows[row].scores.get(column.name, {}).get(protocol, {}).get(name)

    def cells(self, sets: Sets, columns: Sequence[Column] | None = None) -> Cells:
        """Return the cells of sets at all rows.

        Args:
            sets: whose.
            columns: only these of them.
        """
        chosen = self.columns_of(sets) if columns is None else columns
        if not self.rows:
            return Cells.of([None] * len(chosen), [])
        protocol, how = self.protocol(sets), self.together
        pooled = how if sets in TOGETHER and isinstance(how, Together) else None
        table, samples, counted = [], [], []
        for row, learned in enumerate(self.learned):
            scores = [self.score(row, column, protocol) for column in chosen]
            table.append([None if score is None else score.value for score in scores])
            if pooled is None:  # a stage weighs images, of what was learned
                samples.append([column.samples for column in chosen])
                counted.append([column.task is None or column.task in learned for column in chosen])
            else:  # what is pooled weighs as many queries as were asked
                asked = pooled.columns(TOGETHER[sets], learned)
                samples.append([score.n if score else 0 for score in scores])
                counted.append([column in asked for column in chosen])
        return Cells.of(table[0], table[1:], samples, counted, pooled is not None and pooled.grows)

    def values(self, *sets: Sets) -> dict[str, float | None]:
        """Return all metrics of these sets at the last row, under flat names; undefined is null."""
        held = {name: self.cells(name) for name in sets}
        return {
            name: metric_value(entry, held[entry.sets])
            for name, entry in metrics("stream").items()
            if entry.sets in held
        }
