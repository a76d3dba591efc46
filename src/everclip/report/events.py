"""What a reader of a report must know: the events of its run, and what the report lacks."""

from __future__ import annotations

from typing import Any

from everclip.evaluation.results import ON_DATA, Results
from everclip.report.runs import Run


def events(run: Run) -> list[dict[str, Any]]:
    """Return the events of a run and what its report lacks.

    `recorded_only` marks remarks on data that come with the package: they are listed, but no notice counts them.
    """
    labels = {row.index: run.label(row) for row in run.results.rows}
    builtin = _builtin(run.results)
    entries: list[dict[str, Any]] = [
        {
            "kind": event.kind,
            "message": event.message,
            "row": "" if event.row is None else labels.get(event.row, f"row {event.row}"),
            "recorded_only": builtin and event.kind in ON_DATA,
        }
        for event in run.results.events
    ]
    if run.results.status != "finished":
        done, tasks = run.learned_count(run.last), len(run.results.tasks)
        message = f"This run is not finished: {done} of {tasks} tasks are learned and measured."
        entries.insert(0, _entry(run.results.status, message))
    if run.config_problem:
        entries.append(_entry("configuration", run.config_problem))
    return entries


def _entry(kind: str, message: str) -> dict[str, Any]:
    return {"kind": kind, "row": "", "message": message, "recorded_only": False}


def _builtin(results: Results) -> bool:
    """Return whether all data came with the package, so that a reader can do nothing about them."""
    labels = results.provenance.get("data") or {}
    return bool(labels) and all(label.startswith("builtin:") for label in labels)
