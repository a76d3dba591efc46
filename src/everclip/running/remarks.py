"""Remarks on the inputs of a run, for readers of its results: rows set aside, columns guessed, assumptions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from everclip.contracts import Task
from everclip.data.catalog.cards import PREFIX
from everclip.data.reading.quarantine import Quarantine
from everclip.evaluation.results import ON_DATA
from everclip.files import optional_write, write_text_atomic
from everclip.methods.base import Method
from everclip.methods.slots import SlotMethod
from everclip.methods.task_training import unused
from everclip.models.backbone import Backbone
from everclip.models.modules.grow import changed_at_start
from everclip.running.run_state import RunState
from everclip.scenarios.base import ListScenario
from everclip.scenarios.measuring import class_name_notes, same_text_notes

QUARANTINE = "quarantine.csv"


def all_remarks(
    scenario: ListScenario, method: Method, tasks: Sequence[Task], notes: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return (kind, message) of all remarks that are known before the first step; `notes` come last."""
    same = same_text_notes(scenario.eval_sets, method.backbone.tokenise)
    return [
        *data_remarks(scenario, method.backbone),
        *(("same names", line) for line in same),
        *unused_per_task(method, tasks),
        *more_than_a_budget(method, tasks),
        *([] if method.batch_dependent is None else [("batch", method.batch_dependent)]),
        *notes,
    ]


def data_remarks(scenario: ListScenario, backbone: Backbone) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of guesses, assumptions and rows set aside."""
    yield from (("guessed", line) for line in scenario.guesses)
    yield from (("data", line) for line in scenario.notes)
    yield from (("assumed", line) for line in backbone.notes)
    for kind in changed_at_start(backbone.clip):
        yield (
            "start model",
            f"{kind}: modules of this kind change the model before training; row 0 and the guard's reference are the "
            "model with these modules, not the plain backbone",
        )
    for quarantine in scenario.quarantine:
        if quarantine.entries:
            yield (
                "quarantine",
                f"{quarantine.summary()}{published_note(quarantine)}; each row is in {QUARANTINE}",
            )


def learned_remarks(notes: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (kind, message) of what a method says about the task that it learned, if no event says it already.

    Args:
        notes: those of the method; a part of them may hold a `note` in words.
        events: those of the run so far.
    """
    said = {(event["kind"], event["message"]) for event in events}
    parts = (
        (kind, part["note"]) for kind, part in notes.items() if isinstance(part, Mapping) and "note" in part
    )
    return [one for one in parts if one not in said]


def is_printed(kind: str, scenario: ListScenario) -> bool:
    """Return whether a remark is printed, not only recorded: nobody mends the data that come with the package."""
    return not (scenario.builtin and kind in ON_DATA)


def start_notes(scenario: ListScenario, state: RunState) -> list[str]:
    """Return notes to print at the start of a run; they are not recorded as events."""
    if state.rows or scenario.builtin:
        return []
    return [f"note: names: {line}" for line in class_name_notes(scenario.eval_sets)]


def unused_per_task(method: Method, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of `per_task` settings for tasks that the stream does not have."""
    names = unused(method.per_task, tasks)
    if names:
        yield (
            "per task",
            f"method.per_task sets rates or budgets for {', '.join(names)}, but no task of this stream has such a "
            "name; tasks without `per_task` settings use training.*",
        )


def more_than_a_budget(method: Method, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) if a method spends more than one budget on a task."""
    if isinstance(method, SlotMethod) and method.settings.budgets == "cumulative" and len(tasks) > 1:
        yield (
            "budget",
            f"{method.preset} spends t budgets on the t-th task: {len(tasks) * (len(tasks) + 1) // 2} over the "
            f"{len(tasks)} tasks of this stream, where other methods spend {len(tasks)} (method.budget=constant "
            "spends one per task)",
        )


def published_note(quarantine: Quarantine) -> str:
    """Return the end of a note on a public data set with missing images: whether results are comparable."""
    if not quarantine.source.startswith(PREFIX):
        return ""
    gone, rows = quarantine.sides.get("test", (0, 0))
    if gone:
        left = f"{rows - gone:,} of its {rows:,} test images"
        return f"; scores on it use {left} and are not exactly those of the benchmark"
    sideless = len(quarantine.entries) - sum(gone for gone, _ in quarantine.sides.values())
    if sideless:
        return f"; the sides of {sideless:,} of these rows are not known, so test images may be missing"
    if not quarantine.counted:
        return "; counts=noted, so test images may be missing"
    return "; all of its test images are measured"


def write_quarantine(scenario: ListScenario, folder: Path) -> None:
    """Write `quarantine.csv`, the rows that were set aside with their reasons, if there are any."""
    entries = [(q.source, entry) for q in scenario.quarantine for entry in q.entries]
    if not entries:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", "row", "name", "reason", "detail"])
    for source, entry in entries:
        writer.writerow([source, entry.row, entry.name, entry.reason, entry.detail])
    with optional_write(folder / QUARANTINE, "the list of rows that were set aside is missing"):
        write_text_atomic(folder / QUARANTINE, text.getvalue())
