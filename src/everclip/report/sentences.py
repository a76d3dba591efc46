"""Write the headline of a report from its numbers. A difference whose interval contains 0 is called not resolved."""

from __future__ import annotations

import re

from everclip.metrics import AUTO
from everclip.report.estimates import (
    Change,
    Estimate,
    at_last_row,
    change_since_start,
    estimate,
    metric_cells,
)
from everclip.report.formats import number, percent, span
from everclip.report.runs import Run


def headline(run: Run) -> str:
    """Return what a run achieved, in one or two sentences."""
    if run.last < 0:
        return f"{run.name}: no row has been measured yet."
    if run.last == 0:
        return _before_training(run)
    if run.results.online is not None and not run.all_at_once and (stream := _of_stream(run)):
        return stream
    scores, together = _scores(run), _together(run)
    if together:
        return f"{_opening(run)}{together}. In parts, it {scores}{_balance(run)}.{_growing_note(run)}"
    return f"{_opening(run)}{scores}{_balance(run)}.{_growing_note(run)}"


def _of_stream(run: Run) -> str:
    """Return what a run achieved on a stream that is seen once; empty if its test set is not scored."""
    columns = run.columns("task")
    score = run.score(run.last, columns[0]) if columns else None
    if score is None or score.value is None:
        return ""
    verb, preposition, ending = _verb(run)
    state = "" if run.complete else " (stopped)" if run.results.status == "stopped" else " (not finished)"
    now = share(Estimate(value=score.value, low=score.low, high=score.high))
    area = run.results.metrics.get("a_auc")
    mean = "" if area is None else f"; {whole_percent(area)} on average over the stream (A_AUC)"
    known, change = estimate(run, metric_cells(run, "known")), change_since_start(run, "known")
    kept = ""
    if known is not None:
        before = estimate(run, metric_cells(run, "known", 0))
        kept = f" It {verb} {share(known)} {preposition} what it knew before{_direction(before, change)}."
    seen = f"After {run.results.rows[run.last].samples:,} samples, each seen once{state}"
    return (
        f"{seen}, {run.name} {verb} {now} {preposition} "
        f"the test images of the classes seen by then{ending}{mean}.{kept}"
    )


def _together(run: Run) -> str:
    """Return `recognises 33 % (31–35) of everything, old and new together, up from 26 %`; empty if not scored."""
    now = estimate(run, metric_cells(run, "everything"))
    if now is None or isinstance(run.together, str):
        return ""
    verb, preposition, ending = _verb(run)
    what = "everything, old and new together" if run.together.old else "everything, all tasks together"
    if run.together.grows and not run.complete:
        what += " so far"
    before, change = estimate(run, metric_cells(run, "everything", 0)), change_since_start(run, "everything")
    return f"{verb} {share(now)} {preposition} {what}{ending}{_direction(before, change)}"


def _growing_note(run: Run) -> str:
    """Say if there are more names to choose from after every task, so that rows are not directly comparable."""
    shown = run.results.headline["protocol"]
    named = next((p for p in run.results.protocols if p["name"] == shown), {})
    if named.get("space") != "seen":
        return ""
    if named.get("unseen") == "own":
        return (
            " (Before it is learned, a set is scored among its own names; afterwards, among all names learned so far. "
            "So changes since row 0 show both learning and the larger choice of names.)"
        )
    if not run.columns("known"):
        return ""
    return " (There are more names to choose from after every task. This is part of the change on what it knew before.)"


def share(estimate: Estimate) -> str:
    """Return `46 % (44–48)`, with a decimal for small values: `6.5 % (4.9–8.5)`."""
    interval = span(estimate.low, estimate.high, _digits(estimate.value))
    return f"{whole_percent(estimate.value)} ({interval})" if interval else whole_percent(estimate.value)


def whole_percent(value: float) -> str:
    """Return a share in whole percent, with a decimal below ten."""
    return percent(value, _digits(value))


def _digits(value: float) -> int:
    return 0 if abs(value) >= 0.095 else 1


def whole_points(value: float) -> str:
    """Return the size of a difference in whole points, with a decimal below one point."""
    return number(abs(100 * value), 0 if abs(value) >= 0.0095 else 1)


def points_of(value: float) -> str:
    """Return `1 point`, `3 points` or `0.4 points`."""
    amount = whole_points(value)
    return f"{amount} point" if amount == "1" else f"{amount} points"


def _verb(run: Run) -> tuple[str, str, str]:
    """Return the headline metric in words: verb, preposition, ending."""
    name = run.results.matrix.metric
    rank = re.fullmatch(r"(?:mean|text_to_image|image_to_text)_r(\d+)", name)
    if rank:
        ending = "" if rank[1] == "1" else f" among the first {rank[1]} answers"
        return "finds", "of", ending
    if name in ("accuracy", "mean_class_accuracy"):
        return "recognises", "of", ""
    if name == AUTO:
        return "is right", "on", " (by class, or by image and caption)"
    return "scores", "on", f" ({name})"


def _before_training(run: Run) -> str:
    verb, preposition, ending = _verb(run)
    new, known = estimate(run, metric_cells(run, "new", 0)), estimate(run, metric_cells(run, "known", 0))
    scores = [f"{share(new)} {preposition} what it will be taught"] if new else []
    scores += [f"{share(known)} {preposition} what it already knows"] if known else []
    state = {"running": "is still running", "stopped": "stopped", "finished": "is finished"}[
        run.results.status
    ]
    rest = f"No task has been learned yet (the run {state}): learning and forgetting are not defined."
    if not scores:
        return f"Row 0 of {run.name} is measured. {rest}"
    return f"Before any training, {run.name} {verb} {' and '.join(scores)}{ending}. {rest}"


def _opening(run: Run) -> str:
    done, tasks = run.learned_count(run.last), len(run.results.tasks)
    plural = "task" if tasks == 1 else "tasks"
    if run.complete:
        return f"After {tasks} {plural}, {run.name} "
    state = "stopped" if run.results.status == "stopped" else "not finished"
    return f"After {done} of {tasks} {plural} ({state}), {run.name} "


def _scores(run: Run) -> str:
    verb, preposition, ending = _verb(run)
    taught, known = estimate(run, metric_cells(run, "taught")), estimate(run, metric_cells(run, "known"))
    before, change = estimate(run, metric_cells(run, "known", 0)), change_since_start(run, "known")
    scores = [f"{share(taught)} {preposition} what it was taught"] if taught else []
    if known:
        scores.append(f"{share(known)} {preposition} what it knew before{_direction(before, change)}")
    if not scores:
        return "was measured, but no cell of the headline is scored"
    return f"{verb} {' and '.join(scores)}{ending}"


def _direction(before: Estimate | None, change: Change | None) -> str:
    if before is None or change is None:
        return ""
    if change.nothing:
        return ", exactly as before"
    if not change.resolved:
        return f", against {whole_percent(before.value)} at the start (not resolved)"
    return f", {'down' if change.value < 0 else 'up'} from {whole_percent(before.value)}"


def _balance(run: Run) -> str:
    """Return `: learned +12 points, forgot 10`."""
    learned, known = change_since_start(run, "taught"), change_since_start(run, "known")
    parts: list[str] = []
    if learned is not None:
        parts.append(_learned(learned))
    if known is not None:
        parts.append(_forgot(known))
    else:
        lost = at_last_row(run, "forgetting")
        if lost is not None:
            parts.append(forgot_tasks(lost))
    return f": {', '.join(parts)}" if parts else ""


def forgot_tasks(lost: Estimate) -> str:
    """Say how far earlier tasks fell from their best score; a negative value is a gain."""
    interval = span(lost.low, lost.high)
    ending = f" ({interval})" if interval else ""
    if lost.value == 0 and lost.low in (None, 0) and lost.high in (None, 0):
        return "forgot nothing of earlier tasks"
    if lost.low is not None and lost.high is not None and lost.low <= 0 <= lost.high:
        return f"forgetting of earlier tasks not resolved{ending}"
    if lost.value < 0:
        gained = span(None if lost.high is None else -lost.high, None if lost.low is None else -lost.low)
        ending = f" ({gained})" if gained else ""
        return f"gained {whole_points(lost.value)} on earlier tasks{ending}"
    return f"forgot {whole_points(lost.value)} of earlier tasks{ending}"


def _learned(change: Change) -> str:
    if change.nothing:
        return "learned nothing"
    if not change.resolved:
        return f"what it learned is not resolved ({_interval(change)})"
    amount = points_of(change.value)
    return f"learned +{amount}" if change.value > 0 else f"got worse by {amount} at what it was taught"


def _forgot(change: Change) -> str:
    if change.nothing:
        return "forgot nothing"
    if not change.resolved:
        return f"what it forgot is not resolved ({_interval(change)})"
    return (
        f"forgot {whole_points(change.value)}"
        if change.value < 0
        else f"gained {whole_points(change.value)} on what it knew before"
    )


def _interval(change: Change) -> str:
    return f"{span(change.low, change.high, 1)} points" if change.low is not None else "no interval"


def retention(run: Run) -> str:
    """Return a sentence on the retention suite; empty if the benchmark has none."""
    change, columns = change_since_start(run, "retention"), run.columns("retention")
    before, now = (
        estimate(run, metric_cells(run, "retention", 0)),
        estimate(run, metric_cells(run, "retention")),
    )
    if change is None or before is None or now is None:
        return ""
    suite = (
        "The retention set, never trained on,"
        if len(columns) == 1
        else (f"The {len(columns)} retention sets, never trained on,")
    )
    if change.nothing:
        return f"{suite} stayed exactly at {whole_percent(now.value)}."
    went = f"went from {whole_percent(before.value)} to {share(now)}"
    if not change.resolved:
        return f"{suite} {went}: not resolved."
    return f"{suite} {went}: {'lost' if change.value < 0 else 'gained'} {points_of(change.value)}."
