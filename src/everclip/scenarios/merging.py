"""The texts of class names that several tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from everclip.contracts import ClassEntry, EvalSet, Task

Built = tuple[Task, EvalSet | None]


def with_joined_templates(built: Sequence[Built], templates_of: Mapping[str, str]) -> list[Built]:
    """Give every class that several tasks share the templates of all these tasks, those of its own task first.

    A template that is in several lists counts several times in the class embedding, the mean over all templates
    (CoLeCLIP's ODCL benchmark, arXiv 2403.10245). As published, tasks that are not learned yet count, too, so the
    embedding of a name never changes.

    Args:
        built: tasks and their evaluation sets.
        templates_of: class name -> the one task whose templates it takes instead.
    """
    by_task: dict[str, dict[str, ClassEntry]] = {}
    for task, measured in built:
        for entry in (*(task.classes or ()), *((measured.classes if measured else None) or ())):
            by_task.setdefault(entry.key, {}).setdefault(task.name, entry)

    def joined(entry: ClassEntry, name: str) -> ClassEntry:
        entries = by_task[entry.key]
        if len(entries) == 1:
            return entry
        chosen = templates_of.get(entry.name)
        if chosen in entries:
            return replace(entry, templates=entries[chosen].templates)
        others = [t for other, e in entries.items() if other != name for t in e.templates]
        return replace(entry, templates=(*entry.templates, *others))

    def all_joined(classes: tuple[ClassEntry, ...] | None, name: str) -> tuple[ClassEntry, ...] | None:
        return None if classes is None else tuple(joined(entry, name) for entry in classes)

    return [
        (
            replace(task, classes=all_joined(task.classes, task.name)),
            None if s is None else replace(s, classes=all_joined(s.classes, task.name)),
        )
        for task, s in built
    ]
