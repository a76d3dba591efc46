"""Prints a finished run in a few lines."""

from __future__ import annotations

from pathlib import Path

import typer

from everclip.evaluation.results import Matrix, Results
from everclip.metrics import AUTO


def percent(value: float | None) -> str:
    """Return a share as percent, or a dash if it is undefined."""
    return "    -" if value is None else f"{100 * value:5.1f}"


def old_and_new(results: Results) -> list[str]:
    """Return a line with the scores of old and new together, before and now, if they are scored together."""
    if results.together is None:
        return []
    shown = []
    parts = (("everything", "everything"), ("everything_old", "old"), ("everything_new", "new"))
    known = any(column.group == "known" for column in results.columns)
    for name, part in parts if known else parts[:1]:
        before, last = results.metrics.get(f"{name}_before"), results.metrics.get(f"{name}_last")
        if last is not None:
            start = "" if before is None else f"{100 * before:.1f} -> "
            shown.append(f"{part} {start}{100 * last:.1f}")
    what = "old and new" if known else "all tasks"
    return [f"{what} together (protocol `{results.together.protocol}`): {', '.join(shown)}"] if shown else []


def old_scores_fell(results: Results) -> bool:
    """Whether the score of the base or of the retention suite fell."""
    changes = [results.metrics.get(f"{part}_change") for part in ("known", "retention")]
    return any(change is not None and change < 0 for change in changes)


def no_gain(results: Results) -> bool:
    """Whether a finished run that trains weights did not improve on its tasks."""
    change = results.metrics.get("new_change")
    trained = (results.method["cost"].get("trainable_parameters") or 0) > 0
    return results.status == "finished" and trained and change is not None and change <= 0


def _without_second_measures(results: Results) -> Matrix:
    """Return the matrix without the columns of `evaluate_also`: another metric on the same images."""
    kinds = {column.kind for column in results.columns if column.group == "task"}
    hidden = {c.name for c in results.columns if c.group == "part" and c.kind not in kinds}
    matrix = results.matrix
    kept = [i for i, name in enumerate(matrix.columns) if name not in hidden]
    values = [[row[i] for i in kept] for row in matrix.values]
    return matrix.model_copy(update={"columns": [matrix.columns[i] for i in kept], "values": values})


def print_results(results: Results, folder: Path, place: str) -> None:
    """Print the score matrix of the headline, notes, and the places of result and report.

    Args:
        results: of a run.
        folder: the run folder on this machine.
        place: the run folder as the user named it: a folder, or a URL.
    """
    matrix = _without_second_measures(results)
    width = max(len(name) for name in [*matrix.rows, "before"])
    columns = [max(5, len(name)) for name in matrix.columns]
    metric = "accuracy or mean_r1" if matrix.metric == AUTO else matrix.metric
    retention = any(column.group == "retention" for column in results.columns)
    own = " (retention sets: own metric, own answers)" if retention else ""
    typer.echo(f"{results.title}: {metric}, protocol `{matrix.protocol}`, percent{own}")
    header = "  ".join(f"{n:>{w}}" for n, w in zip(matrix.columns, columns, strict=True))
    typer.echo(f"{'after':<{width}}  {header}")
    for label, values in zip(matrix.rows, matrix.values, strict=True):
        cells = "  ".join(f"{percent(v):>{w}}" for v, w in zip(values, columns, strict=True))
        typer.echo(f"{label:<{width}}  {cells}")
    for line in old_and_new(results):
        typer.echo(line)
    collapsed = [event for event in results.events if event.kind == "collapsed"]
    if no_gain(results) and not collapsed:
        cause = "too high, since old scores fell, too" if old_scores_fell(results) else "too low"
        typer.echo(
            f"note: the scores on the new tasks did not rise. The learning rate may be {cause}, or the steps too few: "
            "`everclip suggest` measures a rate."
        )
    for event in collapsed:
        typer.echo(f"WARNING: {event.message}.")
    typer.echo(f"results: {place}/results.json")
    for what, page in (("report:  ", "report.html"), ("before and after: ", "diagnosis.html")):
        if (folder / page).is_file():
            typer.echo(f"{what}{place}/{page}")
