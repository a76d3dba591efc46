"""What a reader of a result must know about what went into it: rows set aside, columns guessed, things assumed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from everclip.contracts import Task
from everclip.data.catalog.cards import PREFIX
from everclip.data.reading.quarantine import Quarantine
from everclip.files import optional_write, write_text_atomic
from everclip.methods.base import Method
from everclip.methods.pace import unused
from everclip.models.backbone import Backbone
from everclip.models.modules.grow import changed_at_start
from everclip.running.place import Place
from everclip.scenarios.base import ListScenario
from everclip.scenarios.measuring import class_name_notes, same_text_notes

QUARANTINE = "quarantine.csv"


def all_remarks(
    scenario: ListScenario, method: Method, tasks: Sequence[Task], notes: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return (kind, message) of what a reader should know before the first step, `notes` of the fit last."""
    same = same_text_notes(scenario.eval_sets, method.backbone.tokenise)
    return [
        *remarks(scenario, method.backbone),
        *(("same names", line) for line in same),
        *left_out(method, tasks),
        *([] if method.batch_dependent is None else [("batch", method.batch_dependent)]),
        *notes,
    ]


def remarks(scenario: ListScenario, backbone: Backbone) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of everything that was guessed, assumed or set aside."""
    yield from (("guessed", line) for line in scenario.guesses)
    yield from (("data", line) for line in scenario.notes)
    yield from (("assumed", line) for line in backbone.notes)
    for kind in changed_at_start(backbone.clip):
        yield (
            "start model",
            f"{kind}: grown modules of this kind change the model before anything is learned; row 0, and what a guard "
            "holds to, is the model with them, not the plain backbone",
        )
    for quarantine in scenario.quarantine:
        if quarantine.entries:
            yield (
                "quarantine",
                f"{quarantine.summary()}{against_published(quarantine)}; each row is in {QUARANTINE}",
            )


def said_at_start(scenario: ListScenario, place: Place) -> list[str]:
    """Return lines that the plan says of the data as well, for people alone: they are no events of the run."""
    return [] if place.rows else [f"note: names: {line}" for line in class_name_notes(scenario.eval_sets)]


def left_out(method: Method, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of settings that a preset brought for tasks of other streams."""
    names = unused(method.per_task, tasks)
    if names:
        yield (
            "per task",
            f"method.per_task sets rates or budgets for {', '.join(names)}, and no task of this stream has such a "
            "name; tasks without settings of their own take training.*",
        )


def against_published(quarantine: Quarantine) -> str:
    """Say what numbers on a public data set rest on, where pictures are missing that published ones rest on."""
    if not quarantine.source.startswith(PREFIX):
        return ""
    gone, rows = quarantine.sides.get("test", (0, 0))
    if gone:
        left = f"{rows - gone:,} of its {rows:,} test pictures"
        return f"; numbers on it rest on {left} and are not exactly the benchmark's"
    sideless = len(quarantine.entries) - sum(gone for gone, _ in quarantine.sides.values())
    if sideless:
        return f"; sides of {sideless:,} of these rows are not known, so that test pictures may be missing"
    if not quarantine.counted:
        return "; counts=noted, so that test pictures may be missing"
    return "; all of its test pictures are measured"


def write_quarantine(scenario: ListScenario, folder: Path) -> None:
    """Write every row that was set aside, with its reason, as `quarantine.csv`; nothing if there is none."""
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
