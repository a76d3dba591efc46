"""Class-incremental tasks: a few new classes each, in a stated order."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from everclip.data.table import Table
from everclip.scenarios.base import class_entries
from everclip.scenarios.ordering import ordered
from everclip.scenarios.spec import ScenarioSpec


def groups(spec: ScenarioSpec, train: Table, test: Table) -> list[tuple[str, Table, Table, Any]]:
    """Return (name, training rows, test rows, classes) per group of classes.

    Classes without a training row or without a test row are left out: they could not be learned or measured.
    """
    measured = set(test.column("class_key"))
    names = [entry.key for entry in class_entries(train, ("{}",)) if entry.key in measured]
    order = ordered(names, spec, "classes")
    assert spec.per_task is not None  # the spec's own validation
    first = spec.first_task or spec.per_task
    cuts = [0, *range(first, len(order), spec.per_task), len(order)]
    parts = []
    for index, (start, stop) in enumerate(pairwise(cuts)):
        keys = order[start:stop]
        rows, held_out = (t.where("class_key", set(keys).__contains__) for t in (train, test))
        found = {e.key: e for e in class_entries(rows, spec.class_templates, (index,))}
        entries = tuple(found[key] for key in keys)
        parts.append((f"classes {start + 1}-{stop}", rows, held_out, entries))
    return parts
