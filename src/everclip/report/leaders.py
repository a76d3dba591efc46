"""Sentences that say which method is best: on new sets, on known sets, and on both together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from everclip.report.comparison import Method
from everclip.report.estimates import Change
from everclip.report.sentences import headline, points_of, share, whole_percent
from everclip.report.teams import Team

Changed = Callable[[str, Team, Team], Change | None]

THINGS: tuple[tuple[str, str], ...] = (
    ("new", "what is new"),
    ("known", "what was known before"),
    ("everything", "everything, old and new together"),
)


def leaders(
    teams: Sequence[Team], methods: Sequence[Method], changed: Changed, before: Sequence[Method]
) -> list[str]:
    """Say who is ahead on what was learned, on what was kept and on both, and whether that is resolved.

    A method that learns everything at once is a bound and no rival, so it is named apart; one that learned fewer tasks
    than another had less to forget, and is not ranked. Of a run alone, its own headline is returned.
    """
    if len(teams) == 1 and len(teams[0].runs) == 1:
        return [headline(teams[0].runs[0])]
    bounds = [i for i, team in enumerate(teams) if any(run.all_at_once for run in team.runs)]
    done = [min(run.learned_count(run.last) for run in team.runs) for team in teams]
    apart = [*bounds, *(i for i, learned in enumerate(done) if learned < max(done))]
    said = [
        text for key, thing in THINGS if (text := _ahead(key, thing, teams, methods, changed, before, apart))
    ]
    return said + (_bounds(methods, bounds) if said else [])


def _ahead(
    key: str,
    thing: str,
    teams: Sequence[Team],
    methods: Sequence[Method],
    changed: Changed,
    before: Sequence[Method],
    apart: Sequence[int],
) -> str:
    ranked = sorted(
        (
            (value, index)
            for index, method in enumerate(methods)
            if index not in apart and (value := method.values[key]) is not None
        ),
        key=lambda entry: -entry[0].value,
    )
    if len(ranked) < 2:
        return ""
    (best, i), (second, j) = ranked[:2]
    ahead = f"{methods[i].label} is best at {thing}: {share(best)}"
    change = changed(key, teams[i], teams[j])
    start = before[0].values.get(key) if len(before) == 1 else None
    since = "" if start is None else f" (before training: {whole_percent(start.value)})"
    if change is not None and change.nothing:
        return f"{methods[i].label} and {methods[j].label} give the same answers on {thing}: {share(best)}{since}."
    if change is not None and change.resolved:
        return f"{ahead}, {points_of(change.value)} more than {methods[j].label}{since}."
    rival = f"{methods[j].label} has {whole_percent(second.value)}"
    return f"{ahead}; {rival}, a difference that is not resolved{since}."


def _bounds(methods: Sequence[Method], bounds: Sequence[int]) -> list[str]:
    said = []
    for index in bounds:
        new, known = methods[index].values["new"], methods[index].values["known"]
        reached = [
            f"{share(value)} of {thing}" for value, thing in ((new, "the new"), (known, "the known")) if value
        ]
        if reached:
            said.append(
                f"{methods[index].label} learns everything at once and reaches {' and '.join(reached)}."
            )
    return said
