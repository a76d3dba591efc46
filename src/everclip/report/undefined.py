"""Why a number of a result is not defined, in words."""

from __future__ import annotations

from everclip.evaluation.measurements import Measurements
from everclip.evaluation.results import Results
from everclip.evaluation.together import Together
from everclip.metrics import Need, find


def why_undefined(name: str, results: Results) -> str:
    """Say why a metric of this result is null."""
    entry = find(name, "stream")
    whys = (_why(need, results) for need in (entry.needs if entry else ()))
    return next(filter(None, whys), None) or _missing_cells(results)


def _why(need: Need, results: Results) -> str:
    """Say why a result lacks what a metric needs; empty if it has it."""
    tasks, rows = len(results.tasks), len(results.rows) - 1
    columns = {column.group for column in results.columns}
    how = Measurements.of(results).together
    if need in ("known", "retention") and need not in columns:
        return f"the benchmark has no {need} set"
    if need == "together" and isinstance(how, str):
        return how
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
    if need == "fixed answers" and isinstance(how, Together) and how.grows:
        return "the answers on offer become more with every task, so row 0 is of another kind"
    return ""


def _missing_cells(results: Results) -> str:
    """Say that a cell is missing, and of an extended run which rows were measured before later sets came."""
    rows = unmeasured_rows(results)
    if not rows:
        return "a cell that its formula names is not scored"
    shown = ", ".join(results.rows[row].label for row in rows)
    return (
        f"the run was extended, and the rows {shown} were not measured on what was added later: their models were "
        "not kept (checkpoint.keep_rows=true)"
    )


def unmeasured_rows(results: Results) -> list[int]:
    """Return the rows of an extended run that were measured before other sets were added, and not again since."""
    if not any(event.kind == "extended" for event in results.events):
        return []
    names = {column.name for column in results.columns}
    return [place for place, row in enumerate(results.rows) if not names <= row.scores.keys()]
