"""The runs of one method, and their numbers: of a single run, or mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from everclip.evaluation.statistics import seed_spread
from everclip.report.comparison import Method, Value
from everclip.report.estimates import Estimate, estimate, is_together, terms
from everclip.report.runs import Run


@dataclass(frozen=True)
class Team:
    """The runs of one method with the same settings, by seed."""

    label: str
    runs: tuple[Run, ...]


def value_of(team: Team, of: Callable[[Run], Estimate | None]) -> Value | None:
    """The number of a team: of its only run, or mean and spread over seeds; null if any run lacks it."""
    found = [estimated for run in team.runs if (estimated := of(run)) is not None]
    if len(found) != len(team.runs):
        return None
    if len(found) == 1:
        return Value(**found[0].model_dump())
    spread = seed_spread([estimated.value for estimated in found], team.runs[0].confidence)
    return Value(
        value=spread.mean,
        low=spread.low,
        high=spread.high,
        seeds=len(found),
        deviation=spread.standard_deviation,
        how=f"t interval over {len(found)} seeds, items fixed",
    )


def at_row(run: Run, key: str, row: int) -> Estimate | None:
    """Return a metric at a row."""
    return estimate(run, terms(run, key, row))


def before_training(teams: Sequence[Team], keys: Sequence[str]) -> tuple[list[Method], list[str]]:
    """Return the state before any training as a method of its own, several where the runs began differently.

    Returns:
        One entry per state, and notes on what a reader must know of it.
    """
    grouped: list[tuple[dict[str, Value | None], list[Team]]] = []
    for team in teams:
        mine: dict[str, Value | None] = {key: _start(team, key) for key in keys}
        place = next((i for i, (held, _) in enumerate(grouped) if _alike(held, mine)), None)
        if place is None:
            grouped.append((mine, [team]))
        else:
            held, group = grouped[place]
            # A run may lack what another has: a retention set, for one.
            grouped[place] = ({key: held[key] or mine[key] for key in mine}, [*group, team])
    found = []
    for values, group in grouped:
        label = "before" if len(grouped) == 1 else f"before ({', '.join(team.label for team in group)})"
        found.append(
            Method(
                label=label,
                name="before",
                members=[],
                values=values,
                columns={},
                curves={},
                seconds=None,
            )
        )
    return found, _notes(teams[0].runs[0])


def _alike(first: Mapping[str, Value | None], second: Mapping[str, Value | None]) -> bool:
    """Whether two states are the same in all that both have."""
    pairs = ((a, second[key]) for key, a in first.items())
    return all(abs(a.value - b.value) < 1e-6 for a, b in pairs if a is not None and b is not None)


def _start(team: Team, key: str) -> Value | None:
    if is_together(key) and any(_grows(run) for run in team.runs):
        return None
    found = value_of(team, partial(at_row, key=key, row=0))
    if found is not None and found.deviation is not None and found.deviation < 1e-9:
        first = at_row(team.runs[0], key, 0)  # nothing was random yet: its interval is that over the pictures
        return None if first is None else Value(**first.model_dump())
    return found


def _grows(run: Run) -> bool:
    return not isinstance(run.together, str) and run.together.grows


def _notes(run: Run) -> list[str]:
    shown = run.results.headline["protocol"]
    if not any(p["name"] == shown and p.get("space") == "seen" for p in run.results.protocols):
        return []
    return [
        f"Under the protocol {shown} the answers on offer become more with every task: the row `before` was measured "
        "among fewer of them, so a difference to it is not of learning alone."
    ]
