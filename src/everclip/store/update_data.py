"""The data of an update: what is learned, and what is measured, one half to choose with and the other to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from everclip.contracts import EvalSet
from everclip.data.table import Table
from everclip.learner.tasks import table_of
from everclip.scenarios.measuring import MeasuredSets
from everclip.store.sets import Half, half, held_out_sets, parted, probe_sets
from everclip.store.versions import Store


@dataclass(frozen=True)
class UpdateData:
    """The data of an update, and the sets that measure it.

    Attributes:
        learn: rows to learn from.
        held_out: rows that are only measured.
        kept: what the model must keep: probe suites, and held-out rows of earlier updates.
        new: the held-out rows as a set.
    """

    learn: Table
    held_out: Table
    kept: list[EvalSet]
    new: EvalSet

    def half(self, which: Half) -> tuple[list[EvalSet], EvalSet]:
        """Return the halves of kept and new sets that choose, or that judge."""
        return [half(s, which) for s in self.kept], half(self.new, which)


def read_update(store: Store, data: str | Table, parent: str) -> UpdateData:
    """Read the data of an update.

    Raises:
        DataError: if there is nothing to learn or nothing to measure.
    """
    table = data if isinstance(data, Table) else table_of(data)
    learn, held = parted(table)
    past, new = held_out_sets(store, parent, held)
    assert new is not None
    return UpdateData(learn, held, [*probe_sets(store), *past], new)


def measured(sets: Sequence[EvalSet]) -> MeasuredSets:
    """Return sets that are measured each on its own; without the empty ones."""
    return MeasuredSets(tuple(replace(s, group="retention", task=None) for s in sets if len(s.data)))
