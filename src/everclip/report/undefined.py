"""Explain in words why a value of a result is not defined."""

from __future__ import annotations

from everclip.evaluation.measurements import Measurements
from everclip.evaluation.old_and_new import OldAndNew
from everclip.evaluation.results import Results
from everclip.metrics import Need, find


def why_undefined(name: str, results: Results) -> str:
    """Say why a metric of this result is null."""
    entry = find(name, "stream")
    reasons = (_unmet(need, results) for need in (entry.needs if entry else ()))
    return next(filter(None, reasons), None) or _missing_cells(name, results)


def _unmet(need: Need, results: Results) -> str:
    """Say why a result does not meet a need of a metric; empty if it does."""
    tasks, rows = len(results.tasks), len(results.rows) - 1
    columns = {column.group for column in results.columns}
    together = Measurements.of(results).together
    if need in ("known", "retention") and need not in columns:
        return f"the benchmark has no {need} set"
    if need == "together" and isinstance(together, str):
        return together
    if need == "seen once" and not any(row.at for row in results.rows):
        return "only of a stream that is seen once (kind: online)"
    if need == "tasks" and "task" not in columns:
        return "the benchmark has no set that belongs to a task"
    if need == "rows" and rows < 1:
        return "no task has been learned yet"
    if need == "two tasks" and tasks < 2:
        return "needs at least two tasks"
    if need == "matrix" and rows != tasks:
        at_once = any(row.task is None for row in results.rows[1:])
        learned = "one row for all tasks at once" if at_once else f"{max(rows, 0)} of {tasks}"
        return f"needs one row per task; this run has {learned}"
    if need == "fixed answers" and isinstance(together, OldAndNew) and together.grows:
        return "there are more names to choose from after every task, so row 0 cannot be compared with later rows"
    return ""


def _missing_cells(name: str, results: Results) -> str:
    """Say that a cell is missing. For an extended run, name the rows that were measured before the extension."""
    rows = unmeasured_rows(results)
    if results.online is not None:
        entry = find(name, "stream")
        if entry is None or "seen once" not in entry.needs:
            return "a stream that is seen once has one test set for all tasks, and no class is scored before it is seen"
        return "the stream has no row of this kind yet (online.every), or fewer than two ends of parts"
    if not rows:
        return "a cell in its formula is not scored"
    shown = ", ".join(results.rows[row].label for row in rows)
    return (
        f"the run was extended, and the rows {shown} were not measured on the sets that were added: their models were "
        "not kept (checkpoint.keep_rows=true keeps them)"
    )


def unmeasured_rows(results: Results) -> list[int]:
    """Return the rows of an extended run that lack cells for the sets added later."""
    if not any(event.kind == "extended" for event in results.events):
        return []
    names = {column.name for column in results.columns}
    return [index for index, row in enumerate(results.rows) if not names <= row.scores.keys()]
