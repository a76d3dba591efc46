"""Streams that are seen once, with blurry borders: i-Blurry (arXiv 2203.15355) and Si-Blurry (arXiv 2308.09303)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from everclip.contracts import ClassEntry, EvalSet, Task
from everclip.data.sampling.blurry import Blurry, keyed_parts, published_parts
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.base import ListScenario, merge_entries
from everclip.scenarios.conditions import require_column
from everclip.scenarios.groups import Group
from everclip.scenarios.online_spec import OnlineSpec
from everclip.scenarios.reading import Reader
from everclip.scenarios.spec import ScenarioSpec
from everclip.scenarios.splits import Parts, classes_without_rows

EVERY, PART = "every", "part"
"""What a row of a stream is: one of those every n samples, the end of a part, or both."""


@dataclass(frozen=True)
class StreamRow:
    """A planned row of a stream that is seen once.

    Attributes:
        task: index of the task that is being learned.
        batches: batches of this task before the row.
        samples: samples of the stream before the row.
        label: for people.
        at: `every`, `part`, or both.
        last: whether the task ends here.
    """

    task: int
    batches: int
    samples: int
    label: str
    at: tuple[str, ...]
    last: bool


@dataclass(frozen=True)
class StreamPlan:
    """A stream cut into tasks, with its rows; `scenario` has one stretch of classes per row."""

    scenario: ListScenario
    rows: tuple[StreamRow, ...]
    borders: bool


def settings_of(spec: ScenarioSpec) -> OnlineSpec:
    """Return the settings of a stream of kind `online`."""
    return spec.online or OnlineSpec()


def measurable(parts: Parts, reader: Reader) -> Parts:
    """Leave out the test rows of classes that the stream does not have, with a note."""
    require_column(parts.train, "class_key", "kind `online`")
    learned = set(parts.train.column("class_key"))
    reader.notes += classes_without_rows(parts, "not measured", "only learned, not measured")
    return Parts(parts.train, parts.val, parts.test.where("class_key", lambda key: key in learned))


def groups(spec: ScenarioSpec, parts: Parts, reader: Reader) -> list[Group]:
    """Return one group per part of the stream, its training rows in the order of the stream.

    Parts without samples (random cuts may give a part no class) are left out with a note.
    """
    settings, table = settings_of(spec), parts.train.where("class_key", lambda key: key is not None)
    keys = [str(key) for key in table.column("class_key")]
    rule = Blurry(
        parts=settings.parts,
        disjoint=settings.disjoint,
        leak=settings.leak,
        cuts=settings.cuts,
        remainder=settings.remainder,
    )
    if settings.draws == "published":
        number = {key: i for i, key in enumerate(sorted(set(keys), key=_by_number))}
        rows = published_parts([number[key] for key in keys], len(number), rule, spec.order_seed)
    else:
        rows = keyed_parts(keys, table.ids, rule, spec.order_seed)
    found = []
    for number_of_part, chosen in enumerate(rows, start=1):
        if not chosen:
            reader.notes.append(
                f"{table.name}: part {number_of_part} of the stream got no samples, so it is left out"
            )
            continue
        # All test rows are one set; validation rows stay with the part whose classes they show.
        train = table.select(chosen)
        shown = set(train.column("class_key"))
        val = None if parts.val is None else parts.val.where("class_key", shown.__contains__)
        found.append(Group(f"part {number_of_part}", Parts(train, val, parts.test), "classification"))
    if not found:
        raise DataError(f"{table.name}: the stream holds no samples; check `online` and `split`.")
    return found


def _by_number(key: str) -> tuple[int, str]:
    """Sort class keys that are numbers by value, as the labels of the reference code."""
    return (int(key), "") if key.isdigit() else (-1, key)


def seen_once(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """Return tasks whose samples may be drawn once each."""
    return tuple(replace(task, once=True) for task in tasks)


def with_stretches(sets: Sequence[EvalSet], stretch_of: Mapping[str, int]) -> tuple[EvalSet, ...]:
    """Return evaluation sets whose classes name the stretch of the stream in which they appear first."""

    def entry(e: ClassEntry) -> ClassEntry:
        return replace(e, tasks=(stretch_of[e.key],)) if e.key in stretch_of else e

    return tuple(
        replace(s, seen_only=True, classes=tuple(map(entry, s.classes or ()))) if s.group == "task" else s
        for s in sets
    )


def first_positions(table: Table) -> dict[str, int]:
    """Return class -> position of its first sample in a stream, in order of appearance."""
    found: dict[str, int] = {}
    for position, key in enumerate(table.column("class_key")):
        found.setdefault(str(key), position)
    return found


def plan_stream(scenario: ListScenario, batch_size: int, needs_borders: bool) -> StreamPlan:
    """Plan the tasks and rows of a stream that is seen once.

    With hidden borders, it is one task. With borders, each part is a task; a method that needs them is measured at the
    ends of parts only, since it may not be able to predict inside a part.

    Args:
        scenario: of kind `online`.
        batch_size: new samples per batch; rows come after whole batches, so that measuring changes no batch.
        needs_borders: whether the method must know where a part begins.
    """
    settings = settings_of(scenario.spec)
    borders = needs_borders or settings.borders == "visible"
    every = None if needs_borders else settings.every
    whole = Table.concat([task.train for task in scenario.tasks], "stream")
    sizes = [len(task.train) for task in scenario.tasks]
    rows = _rows(sizes, batch_size, every, borders)
    stretch_of: dict[str, int] = {}
    for key, position in first_positions(whole).items():
        stretch_of[key] = next(i for i, row in enumerate(rows) if row.samples > position)
    tasks = scenario.tasks if borders else (_joined(scenario.tasks, whole, stretch_of),)
    tasks = tuple(
        replace(task, covers=tuple(i for i, row in enumerate(rows) if row.task == task.index))
        for task in tasks
    )
    sets = with_stretches(scenario.eval_sets, stretch_of)
    return StreamPlan(replace(scenario, tasks=tasks, eval_sets=sets), rows, borders)


def _joined(tasks: Sequence[Task], whole: Table, order: Iterable[str]) -> Task:
    entries = {entry.key: entry for entry in merge_entries([e for t in tasks for e in t.classes or ()])}
    seen = [replace(entries.pop(key), tasks=(0,)) for key in order]
    # Classes that only validation rows have come last; no batch shows them.
    parts = [task.val for task in tasks if task.val is not None and len(task.val)]
    val = _distinct(Table.concat(parts)) if parts else None
    languages = {task.language for task in tasks}
    return Task(
        index=0,
        name="stream",
        train=whole,
        val=val,
        classes=(*seen, *(replace(e, tasks=(0,)) for e in entries.values())),
        language=languages.pop() if len(languages) == 1 else None,
        once=True,
    )


def _distinct(table: Table) -> Table:
    """Return a table without repeated ids: marked validation rows of a blurry class belong to several parts."""
    first: dict[Any, int] = {}
    for position, name in enumerate(table.ids):
        first.setdefault(name, position)
    return table.select(list(first.values()))


def _rows(sizes: Sequence[int], batch: int, every: int | None, borders: bool) -> tuple[StreamRow, ...]:
    """Return the rows of a stream whose parts have the given sizes; positions are rounded up to whole batches."""
    edges = [0]
    for size in sizes:
        edges.append(edges[-1] + size)
    total = edges[-1]
    marks: dict[tuple[int, int], set[str]] = {}
    parts_at: dict[tuple[int, int], list[int]] = {}

    def place(position: int) -> tuple[int, int]:
        """Return the task and the batches in it after which at least `position` samples were seen."""
        task = (
            next(i for i, (start, stop) in enumerate(pairwise(edges)) if start < position <= stop)
            if borders
            else 0
        )
        start, stop = (edges[task], edges[task + 1]) if borders else (0, total)
        return task, min(-(-(position - start) // batch), -(-(stop - start) // batch))

    for part, edge in enumerate(edges[1:], start=1):
        marks.setdefault(place(edge), set()).add(PART)
        parts_at.setdefault(place(edge), []).append(part)
    for position in range(every, total + 1, every) if every else ():
        marks.setdefault(place(position), set()).add(EVERY)
    rows = []
    for (task, batches), at in sorted(marks.items()):
        start, stop = (edges[task], edges[task + 1]) if borders else (0, total)
        samples = min(start + batches * batch, stop)
        ends = parts_at.get((task, batches), [])
        named = f" (end of part{'s' if len(ends) > 1 else ''} {' and '.join(map(str, ends))})" if ends else ""
        label = f"{samples:,} samples{named}"
        kinds = tuple(kind for kind in (EVERY, PART) if kind in at)
        rows.append(StreamRow(task, batches, samples, label, kinds, samples == stop))
    return tuple(rows)
