"""Keeps measured pictures out of training, by content: whatever a picture is called, and wherever else it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from everclip.contracts import EvalSet, Reference, Task
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.reading import Reader
from everclip.scenarios.retention import Retained


@dataclass(frozen=True)
class Learned:
    """Everything that is trained on or looked at in training."""

    tasks: tuple[Task, ...]
    base: Table | None
    base_val: Table | None
    suite: tuple[Retained, ...]
    reference: Reference | None = None


def keep_apart(learned: Learned, sets: Sequence[EvalSet], reader: Reader) -> Learned:
    """Leave out of training and validation what is measured, and of training what validation looks at.

    A picture that also lies in another file, under another name or on the other side of a column's marks would make
    results better than they are. The evaluation sets stay as they are declared.

    Raises:
        DataError: if nothing is left of a task's training rows, or of the reference pictures.
    """
    measured = reader.contents(s.data for s in sets)
    tasks = tuple(
        replace(t, val=_without(t.val, measured, f"validation of task {t.name!r}", reader))
        for t in learned.tasks
    )
    base_val = _without(learned.base_val, measured, "validation of the base", reader)
    suite = tuple(
        replace(r, own_val=_without(r.own_val, measured, f"validation of {r.spec.name!r}", reader))
        for r in learned.suite
    )
    watched = reader.contents([base_val, *(t.val for t in tasks), *(r.own_val for r in suite)])
    held = measured | watched
    tasks = tuple(_task_without(task, held, reader) for task in tasks)
    base = _without(learned.base, held, "the base", reader)
    reference = learned.reference
    if reference is not None:
        images = _without(reference.images, held, "reference.images", reader)
        if reference.images is not None and not images:
            raise DataError(
                f"reference.images: all of its {len(reference.images):,} pictures are also measured or used for "
                "validation; take pictures that belong to no task."
            )
        reference = replace(reference, images=images)
    return Learned(tasks, base, base_val, suite, reference)


def _task_without(task: Task, contents: set[str], reader: Reader) -> Task:
    train = _without(task.train, contents, f"task {task.name!r}", reader)
    if train is None or len(train) == 0:
        raise DataError(
            f"task {task.name!r}: all of its {len(task.train):,} training pictures are also measured or used for "
            "validation; `everclip check` shows which."
        )
    return replace(task, train=train)


def _without(table: Table | None, contents: set[str], what: str, reader: Reader) -> Table | None:
    if table is None:
        return None
    kept = reader.without(table, contents)
    if len(kept) < len(table):
        reader.notes.append(
            f"{what}: {len(table) - len(kept):,} of {len(table):,} rows are left out, because their pictures are "
            "measured or used for validation elsewhere"
        )
    return kept
