"""The rule that proposes one of two presets after their trials, or none."""

from __future__ import annotations

from dataclasses import dataclass

from everclip.prepare.suggest.trials import Gap, Side, Trial, points

UNSEEN = "forgetting was not measured"


@dataclass(frozen=True)
class Verdict:
    """The proposal and its reason.

    Attributes:
        method: the preset; `None` if the trials do not decide.
        reason: the numbers that decide, or what is missing.
    """

    method: str | None
    reason: str


def decide(closed: Trial, trained: Trial | None = None, gap: Gap | None = None, why: str = "") -> Verdict:
    """Propose one of two presets, or none.

    A preset is ahead if it is better on old and new images together and the difference is resolved. The closed form is
    also ahead if it is not worse, since it costs less. The preset that is ahead is proposed, unless

    - its own gain is not resolved: then learning nothing may be as good;
    - the trial of the other was too short, or its rate was not measured: its run may gain more;
    - it is worse on the retention suite, and the difference is resolved.

    Args:
        closed: the trial of the closed form.
        trained: the trial of the preset that trains; `None` if it was not tried.
        gap: the difference between them.
        why: why the preset that trains was not tried.
    """
    if trained is None or gap is None:
        return Verdict(None, f"{_numbers(closed)}; {why or 'no preset that trains was tried'}")
    difference = gap.together
    numbers = (
        f"{_numbers(trained)}; {_numbers(closed)}; {trained.method} against {closed.method} {_gap_text(gap)}"
    )
    if difference.resolved:
        ahead, other = (trained, closed) if difference.mean > 0 else (closed, trained)
    elif difference.mean <= 0:
        ahead, other = closed, trained
    else:
        more = f"; {trained.weakness}" if trained.weakness else ""
        return Verdict(None, f"{numbers}: {trained.method} looks better, but this may be chance{more}")
    if other.weakness:
        return Verdict(None, f"{numbers}: a run of {other.method} may gain more, since {other.weakness}")
    if not (ahead.together.resolved and ahead.together.change > 0):
        return Verdict(None, f"{numbers}: {ahead.method} is not worse, but its gain is not resolved")
    kept = gap.retention
    if kept is not None and kept.resolved and (kept.mean > 0) != (ahead is trained):
        return Verdict(None, f"{numbers}: {ahead.method} gains more, but loses more on the retention suite")
    return Verdict(
        ahead.method, f"{numbers}{_cost(ahead, other, difference.resolved)}{_caution(ahead, closed)}"
    )


def _cost(ahead: Trial, other: Trial, resolved: bool) -> str:
    if resolved:
        return ""
    return (
        f"; {ahead.method} is not worse and costs less ({ahead.seconds:.0f} s against {other.seconds:.0f} s)"
    )


def _caution(ahead: Trial, closed: Trial) -> str:
    if ahead is closed:
        return "; the model's weights do not change"
    return (
        f"; {UNSEEN}, and {closed.method} changes no weight of the model"
        if ahead.old is None and not ahead.retention
        else ""
    )


def _numbers(trial: Trial) -> str:
    """Return the deciding score of a trial, with its scores on new and old images."""
    text = f"{trial.method}: {_score_text('new', trial.new)}"
    if trial.old is not None:
        text = f"{trial.method}: {_score_text('old and new together', trial.together)} ("
        text += f"{_score_text('new', trial.new)}, {_score_text('old', trial.old)})"
    return text if trial.retention is None else f"{text}, {_score_text('retention', trial.retention)}"


def _score_text(name: str, side: Side) -> str:
    return f"{name} {100 * side.before:.1f} -> {100 * side.after:.1f} %"


def _gap_text(gap: Gap) -> str:
    d = gap.together
    return points(d.mean, d.low, d.high, d.resolved)
