"""The evaluation sets of a store: probes and held-out data, in halves that choose and halves that judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from everclip.contracts import ClassEntry, EvalSet
from everclip.data.sampling.order import unit_hash
from everclip.data.sampling.splits import side_of
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.base import class_entries, merge_entries
from everclip.scenarios.measuring import measured_set
from everclip.store.versions import Store

Half = Literal["choose", "judge"]

MEASURED = 2000
"""Rows of a probe suite, or of the held-out data of an update, that a store keeps at most."""

HELD_OUT_SHARE = 0.15
"""Share of the images of an update that is only measured, unless a column `split` says which."""


def bounded(table: Table, most: int = MEASURED) -> Table:
    """Return at most so many rows, those of images with the lowest hash; the same for every order of the rows."""
    if len(table) <= most:
        return table
    identities = table.identities()
    order = sorted(range(len(table)), key=lambda i: (unit_hash("store", identities[i]), i))
    return table.select(sorted(order[:most]))


def parted(table: Table) -> tuple[Table, Table]:
    """Part the rows of an update into those to learn from and those that are only measured.

    Rows of one image stay together.

    Raises:
        DataError: if one part would be empty.
    """
    if table.has("split"):
        sides = [side_of(mark) == "test" for mark in table.column("split")]
    else:
        sides = [unit_hash("store held out", name) < HELD_OUT_SHARE for name in table.identities()]
    learn, held = ([i for i, out in enumerate(sides) if out == wanted] for wanted in (False, True))
    if not learn or not held:
        raise DataError(
            f"{table.name}: {len(table):,} rows leave nothing to {'learn from' if not learn else 'measure'}; expected "
            "both: give more rows, or a column `split` with train and test."
        )
    return table.select(learn), bounded(table.select(held))


def half(s: EvalSet, which: Half) -> EvalSet:
    """Return one half of a set by hash of its images: what chooses must not judge."""
    chosen = [
        i
        for i, name in enumerate(s.data.identities())
        if (unit_hash("store half", name) < 0.5) == (which == "choose")
    ]
    return replace(s, data=s.data.select(chosen))


def probe_sets(store: Store) -> list[EvalSet]:
    """Return the probe suites."""
    return [replace(measured_set(store.probe(name)), name=name) for name in store.settings.probes]


def held_out_sets(store: Store, parent: str, new: Table | None) -> tuple[list[EvalSet], EvalSet | None]:
    """Return the held-out data of the versions that the parent was learned from, and those of the new data.

    All sets with classes offer the classes of all of them: a new class must not take the images of an older one.

    Args:
        store: the store.
        parent: the version that is updated.
        new: the held-out rows of the new data.
    """
    past = [(version, store.held_out(version)) for version in reversed(store.ancestors(parent))]
    sets = [
        replace(measured_set(table), name=f"held out {version}")
        for version, table in past
        if table is not None
    ]
    fresh = None if new is None else replace(measured_set(new), name="new data")
    classes = _union([*sets, *([fresh] if fresh is not None else [])])
    grown = [replace(s, classes=classes) if s.kind == "classification" else s for s in sets]
    if fresh is not None and fresh.kind == "classification":
        fresh = replace(fresh, classes=classes)
    return grown, fresh


def _union(sets: Sequence[EvalSet]) -> tuple[ClassEntry, ...]:
    labelled = [s.data for s in sets if s.kind == "classification"]
    return merge_entries([entry for data in labelled for entry in class_entries(data, ("{}",))])
