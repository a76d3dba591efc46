"""Keeps test images out of training. Compares images by content, whatever their names and folders are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from everclip.contracts import EvalSet, Reference, Task
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.reading import Reader
from everclip.scenarios.retention import RetentionSet


@dataclass(frozen=True)
class TrainingData:
    """The data that training uses: training rows, validation rows and reference data."""

    tasks: tuple[Task, ...]
    base: Table | None
    base_val: Table | None
    suite: tuple[RetentionSet, ...]
    reference: Reference | None = None


def remove_leaks(
    data: TrainingData, sets: Sequence[EvalSet], reader: Reader, by: str | None = None
) -> TrainingData:
    """Remove test images from training and validation, and validation images from training.

    A test image may also be stored in another file, under another name, or on another side of a split column. Training
    on it would make the results too good. The evaluation sets stay unchanged.

    Args:
        data: what training uses.
        sets: all evaluation sets.
        reader: collects the notes.
        by: a column that names what an image shows (`split.by`): rows of equal values count as one image, in all
            tables that have the column.

    Raises:
        DataError: if no training rows of a task, or no reference images, are left.
    """
    without = partial(_without, reader=reader, by=by)
    measured = reader.contents((s.data for s in sets), by)
    if lacking := [s.name for s in sets if by is not None and not s.data.has(by)]:
        reader.notes.append(
            f"{', '.join(lacking[:3])}{f' and {len(lacking) - 3} more sets' if len(lacking) > 3 else ''}: no column "
            f"{by!r} (split.by), so only rows with equal image bytes leave training"
        )
    tasks = tuple(
        replace(t, val=without(t.val, measured, f"validation of task {t.name!r}")) for t in data.tasks
    )
    base_val = without(data.base_val, measured, "validation of the base")
    suite = tuple(
        replace(r, own_val=without(r.own_val, measured, f"validation of {r.spec.name!r}")) for r in data.suite
    )
    watched = reader.contents([base_val, *(t.val for t in tasks), *(r.own_val for r in suite)], by)
    excluded = measured | watched
    tasks = tuple(_task_without(task, without(task.train, excluded, f"task {task.name!r}")) for task in tasks)
    base = without(data.base, excluded, "the base")
    reference = data.reference
    if reference is not None:
        images = without(reference.images, excluded, "reference.images")
        if reference.images is not None and not images:
            raise DataError(
                f"reference.images: all of its {len(reference.images):,} images are also measured or used for "
                "validation; take images that belong to no task."
            )
        reference = replace(reference, images=images)
    return TrainingData(tasks, base, base_val, suite, reference)


def _task_without(task: Task, train: Table | None) -> Task:
    if train is None or len(train) == 0:
        raise DataError(
            f"task {task.name!r}: all of its {len(task.train):,} training images are also measured or used for "
            "validation; `everclip check` lists them."
        )
    return replace(task, train=train)


def _without(
    table: Table | None, contents: set[str], what: str, reader: Reader, by: str | None
) -> Table | None:
    if table is None:
        return None
    kept = reader.without(table, contents, by)
    if len(kept) < len(table):
        reader.notes.append(
            f"{what}: {len(table) - len(kept):,} of {len(table):,} rows are left out, because their images are "
            "measured or used for validation elsewhere"
        )
    return kept
