"""The texts of class names that several tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from everclip.contracts import ClassEntry, EvalSet, Task

Built = tuple[Task, EvalSet | None]


def with_joined_templates(built: Sequence[Built], templates_of: Mapping[str, str]) -> list[Built]:
    """Give a class that several tasks have the templates of all of them, its own task's first.

    A template that several lists hold counts as often: the class embedding is the mean over all (CoLeCLIP's ODCL
    benchmark, arXiv 2403.10245). Joining is over all tasks, learned or not, as published, so that a name has one
    embedding throughout.

    Args:
        built: tasks and their evaluation sets.
        templates_of: name -> the one task whose templates it has instead.
    """
    held: dict[str, dict[str, ClassEntry]] = {}
    for task, measured in built:
        for entry in (*(task.classes or ()), *((measured.classes if measured else None) or ())):
            held.setdefault(entry.key, {}).setdefault(task.name, entry)

    def joined(entry: ClassEntry, name: str) -> ClassEntry:
        having = held[entry.key]
        if len(having) == 1:
            return entry
        chosen = templates_of.get(entry.name)
        if chosen in having:
            return replace(entry, templates=having[chosen].templates)
        others = [t for other, e in having.items() if other != name for t in e.templates]
        return replace(entry, templates=(*entry.templates, *others))

    def all_joined(entries: tuple[ClassEntry, ...] | None, name: str) -> tuple[ClassEntry, ...] | None:
        return None if entries is None else tuple(joined(entry, name) for entry in entries)

    return [
        (
            replace(task, classes=all_joined(task.classes, task.name)),
            None if s is None else replace(s, classes=all_joined(s.classes, task.name)),
        )
        for task, s in built
    ]
