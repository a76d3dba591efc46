"""The rule by which one of two presets is proposed after their trials, or none of them."""

from __future__ import annotations

from dataclasses import dataclass

from everclip.prepare.suggest.trials import Gap, Side, Trial, points

UNSEEN = "what was known before was not measured"


@dataclass(frozen=True)
class Verdict:
    """What is proposed, and why.

    Attributes:
        method: the preset; `None` if the trials do not decide.
        reason: the numbers that decided, or what is missing.
    """

    method: str | None
    reason: str


def decide(closed: Trial, trained: Trial | None = None, gap: Gap | None = None, why: str = "") -> Verdict:
    """Propose one of two presets, or none.

    One is ahead if the difference on old and new images together is resolved, or if it is the closed form, which
    costs less, and it is not worse. What is ahead is proposed, unless

    - its own gain is not resolved: then learning nothing may be as good;
    - the other's trial was too short, or at a rate that nobody measured: its run may gain more;
    - it loses, resolved, on the retention suite, which is not part of the number that decides.

    Args:
        closed: the trial of the closed form.
        trained: that of the preset that trains; `None` if it was not tried.
        gap: by how much the preset that trains is ahead.
        why: the reason why it was not tried.
    """
    if trained is None or gap is None:
        return Verdict(None, f"{_numbers(closed)}; {why or 'no preset that trains was tried'}")
    difference = gap.together
    numbers = f"{_numbers(trained)}; {_numbers(closed)}; {trained.method} against {closed.method} {_of(gap)}"
    if difference.resolved:
        ahead, other = (trained, closed) if difference.mean > 0 else (closed, trained)
    elif difference.mean <= 0:
        ahead, other = closed, trained
    else:
        more = f"; {trained.weakness}" if trained.weakness else ""
        return Verdict(None, f"{numbers}: {trained.method} looks better, which may be chance{more}")
    if other.weakness:
        return Verdict(None, f"{numbers}: a run of {other.method} may gain more, as {other.weakness}")
    if not (ahead.together.resolved and ahead.together.change > 0):
        return Verdict(None, f"{numbers}: {ahead.method} is not worse, but its gain is not resolved")
    kept = gap.retention
    if kept is not None and kept.resolved and (kept.mean > 0) != (ahead is trained):
        return Verdict(None, f"{numbers}: {ahead.method} gains more, and keeps less of the retention suite")
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
        return "; the model's weights stay as they are"
    return f"; {UNSEEN}, {closed.method} would keep it" if ahead.old is None and not ahead.retention else ""


def _numbers(trial: Trial) -> str:
    """Return what decided of one trial, and both sides of it."""
    text = f"{trial.method}: {_short('new', trial.new)}"
    if trial.old is not None:
        text = f"{trial.method}: {_short('old and new together', trial.together)} ("
        text += f"{_short('new', trial.new)}, {_short('old', trial.old)})"
    return text if trial.retention is None else f"{text}, {_short('retention', trial.retention)}"


def _short(name: str, side: Side) -> str:
    return f"{name} {100 * side.before:.1f} -> {100 * side.after:.1f} %"


def _of(gap: Gap) -> str:
    d = gap.together
    return points(d.mean, d.low, d.high, d.resolved)
