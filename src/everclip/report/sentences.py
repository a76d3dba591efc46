"""The headline of a report, computed from the numbers. What lies inside the interval is called not resolved."""

from __future__ import annotations

import re

from everclip.metrics import AUTO
from everclip.report.estimates import Change, Estimate, at_end, change_since_start, estimate, terms
from everclip.report.formats import number, percent, span
from everclip.report.runs import Run


def headline(run: Run) -> str:
    """Return what a run achieved, in a sentence."""
    if run.last < 0:
        return f"{run.name}: no row has been measured yet."
    if run.last == 0:
        return _before_training(run)
    said, lead = _scores(run), _together(run)
    if lead:
        return f"{_when(run)}{lead}. Of its parts, it {said}{_balance(run)}.{_spaces(run)}"
    return f"{_when(run)}{said}{_balance(run)}.{_spaces(run)}"


def _together(run: Run) -> str:
    """`recognises 33 % (31–35) of everything, old and new together, up from 26 %`; empty where it is not scored."""
    now = estimate(run, terms(run, "everything"))
    if now is None or isinstance(run.together, str):
        return ""
    verb, preposition, ending = _verb(run)
    what = "everything, old and new together" if run.together.old else "everything, all tasks together"
    if run.together.grows and not run.complete:
        what += " so far"
    before, change = estimate(run, terms(run, "everything", 0)), change_since_start(run, "everything")
    return f"{verb} {share(now)} {preposition} {what}{ending}{_direction(before, change)}"


def _spaces(run: Run) -> str:
    """Say where answers become more with every task, so that row 0 and the last row are not of one kind."""
    shown = run.results.headline["protocol"]
    named = next((p for p in run.results.protocols if p["name"] == shown), {})
    if named.get("space") != "seen":
        return ""
    if named.get("unseen") == "own":
        return (
            " (Once learned, a set is answered among all names learned so far; before, among its own: changes since "
            "row 0 are of learning and of more names at once.)"
        )
    if not run.columns("known"):
        return ""
    return " (What it knew before is answered among more names with every task: its change is of that, too.)"


def share(found: Estimate) -> str:
    """Return `46 % (44–48)`, or `6.5 % (4.9–8.5)` where whole percents would say too little."""
    interval = span(found.low, found.high, _digits(found.value))
    return f"{whole_percent(found.value)} ({interval})" if interval else whole_percent(found.value)


def whole_percent(value: float) -> str:
    """Return a share in whole percents, with a decimal below ten."""
    return percent(value, _digits(value))


def _digits(value: float) -> int:
    return 0 if abs(value) >= 0.095 else 1


def whole_points(value: float) -> str:
    """Return percentage points as people say them: whole, but with a decimal where it would round away."""
    return number(abs(100 * value), 0 if abs(value) >= 0.0095 else 1)


def points_of(value: float) -> str:
    """Return `1 point`, `3 points` or `0.4 points`."""
    amount = whole_points(value)
    return f"{amount} point" if amount == "1" else f"{amount} points"


def _verb(run: Run) -> tuple[str, str, str]:
    """What the headline metric says in words: verb, preposition, ending."""
    name = run.results.matrix.metric
    rank = re.fullmatch(r"(?:mean|text_to_image|image_to_text)_r(\d+)", name)
    if rank:
        ending = "" if rank[1] == "1" else f" within the first {rank[1]} answers"
        return "finds", "of", ending
    if name in ("accuracy", "mean_class_accuracy"):
        return "recognises", "of", ""
    if name == AUTO:
        return "answers right", "on", " (classes named, or captions and pictures found)"
    return "scores", "on", f" ({name})"


def _before_training(run: Run) -> str:
    verb, preposition, ending = _verb(run)
    new, known = estimate(run, terms(run, "new", 0)), estimate(run, terms(run, "known", 0))
    said = [f"{share(new)} {preposition} what it is about to be taught"] if new else []
    said += [f"{share(known)} {preposition} what it knows already"] if known else []
    state = {"running": "is still running", "stopped": "stopped", "finished": "is finished"}[
        run.results.status
    ]
    rest = f"No task has been learned yet (the run {state}): learning and forgetting are not defined."
    if not said:
        return f"Row 0 of {run.name} is measured. {rest}"
    return f"Before any training, {run.name} {verb} {' and '.join(said)}{ending}. {rest}"


def _when(run: Run) -> str:
    done, tasks = run.learned_count(run.last), len(run.results.tasks)
    plural = "task" if tasks == 1 else "tasks"
    if run.complete:
        return f"After {tasks} {plural}, {run.name} "
    state = "stopped" if run.results.status == "stopped" else "not finished"
    return f"After {done} of {tasks} {plural} ({state}), {run.name} "


def _scores(run: Run) -> str:
    verb, preposition, ending = _verb(run)
    taught, known = estimate(run, terms(run, "taught")), estimate(run, terms(run, "known"))
    before, change = estimate(run, terms(run, "known", 0)), change_since_start(run, "known")
    said = [f"{share(taught)} {preposition} what it was taught"] if taught else []
    if known:
        said.append(f"{share(known)} {preposition} what it knew before{_direction(before, change)}")
    if not said:
        return "was measured, but no cell of the headline is scored"
    return f"{verb} {' and '.join(said)}{ending}"


def _direction(before: Estimate | None, change: Change | None) -> str:
    if before is None or change is None:
        return ""
    if change.nothing:
        return ", exactly as before"
    if not change.resolved:
        return f", against {whole_percent(before.value)} at the start (not resolved)"
    return f", {'down' if change.value < 0 else 'up'} from {whole_percent(before.value)}"


def _balance(run: Run) -> str:
    """`: learned +12 points, forgot 10`."""
    learned, known = change_since_start(run, "taught"), change_since_start(run, "known")
    said: list[str] = []
    if learned is not None:
        said.append(_learned(learned))
    if known is not None:
        said.append(_forgot(known))
    else:
        lost = at_end(run, "forgetting")
        if lost is not None:
            said.append(forgot_tasks(lost))
    return f": {', '.join(said)}" if said else ""


def forgot_tasks(lost: Estimate) -> str:
    """Say how far earlier tasks fell from their best score; what lies below 0 is a gain."""
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
        return f"what it learned is not resolved ({_around(change)})"
    amount = points_of(change.value)
    return f"learned +{amount}" if change.value > 0 else f"got worse by {amount} at what it was taught"


def _forgot(change: Change) -> str:
    if change.nothing:
        return "forgot nothing"
    if not change.resolved:
        return f"what it forgot is not resolved ({_around(change)})"
    return (
        f"forgot {whole_points(change.value)}"
        if change.value < 0
        else f"gained {whole_points(change.value)} there"
    )


def _around(change: Change) -> str:
    return f"{span(change.low, change.high, 1)} points" if change.low is not None else "no interval"


def retention(run: Run) -> str:
    """Return what became of the sets that are never trained on, in a sentence; nothing if there are none."""
    change, columns = change_since_start(run, "retention"), run.columns("retention")
    before, now = estimate(run, terms(run, "retention", 0)), estimate(run, terms(run, "retention"))
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
