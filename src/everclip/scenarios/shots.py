"""Shots: a fixed number of training images per class, chosen by hash. Other data do not change the choice."""

from __future__ import annotations

from collections import Counter

from everclip.contracts import Task
from everclip.data.sampling.order import unit_hash
from everclip.data.table import Table

SALT = "everclip-shots-v1"


def first_by_hash(table: Table, shots: int | None, seed: int) -> Table:
    """Return `shots` rows of every class: those whose id has the lowest hash with the seed. `None` = all rows.

    A class with fewer rows keeps them all; adding rows to one class changes no other class.
    """
    if shots is None or not table.has("class_key"):
        return table
    by_class: dict[str, list[tuple[float, int]]] = {}
    for position, (key, name) in enumerate(zip(table.column("class_key"), table.ids, strict=True)):
        by_class.setdefault(str(key), []).append((unit_hash(SALT, seed, name), position))
    chosen = [position for places in by_class.values() for _, position in sorted(places)[:shots]]
    return table.select(sorted(chosen))


def classes_below_shots(task: Task, shots: int | None) -> list[str]:
    """Return a note if classes of a task have fewer training rows than `shots`.

    Counts the rows after leaks are removed. Includes classes without any row.
    """
    if shots is None or not task.train.has("class_key"):
        return []
    counts = dict.fromkeys((entry.key for entry in task.classes or ()), 0)
    counts |= Counter(str(key) for key in task.train.column("class_key") if key is not None)
    short = {key: count for key, count in counts.items() if count < shots}
    if not short:
        return []
    least = min(short, key=lambda key: short[key])
    return [
        f"task {task.name!r}: {len(short):,} of {len(counts):,} classes have fewer than {shots} training rows "
        f"({least!r} {short[least]})"
    ]
