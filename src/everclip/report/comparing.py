"""Runs side by side: grouped by method, several seeds as mean and spread, differences with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from everclip.errors import DataError, did_you_mean
from everclip.evaluation.statistics import Interval, seed_spread
from everclip.report import cost
from everclip.report.comparison import (
    LABELS,
    QUANTITIES,
    STAGED,
    Comparison,
    Difference,
    Member,
    Method,
    Over,
    Point,
    Value,
    shown,
)
from everclip.report.definitions import why_undefined
from everclip.report.intervals import DRAWS, difference_interval
from everclip.report.mixing import flatten, refuse_mixture, warnings_about
from everclip.report.quantities import (
    MATRIX,
    PAIRED,
    STAGES,
    Change,
    Estimate,
    Key,
    difference,
    estimate,
    mean_difference,
    metric,
    terms,
)
from everclip.report.runs import Run
from everclip.report.sentences import share, whole_percent, whole_points

CURVES: tuple[Key, ...] = ("known", "new", "retention")


@dataclass(frozen=True)
class Team:
    """The runs of one method with the same settings, by seed."""

    label: str
    runs: tuple[Run, ...]


Changed = Callable[[Key, Team, Team], Change | None]


def compare(
    folders: Sequence[Path | str],
    *,
    force: bool = False,
    baseline: str | None = None,
    draws: int = DRAWS,
    over: Over = "seeds",
) -> Comparison:
    """Compare runs of one benchmark.

    Runs that differ in nothing but the seed are one method: its numbers are means over seeds. Differences are
    taken against `baseline` (the first method by default): a paired bootstrap over items where both are single
    runs that hold outcomes, a t interval over paired seeds where there are several, else from the intervals of
    each; every difference says which.

    Args:
        folders: run folders.
        force: compare although benchmark, headline or evaluation sets differ (a note says how).
        baseline: label of the method to subtract.
        draws: number of bootstrap draws.
        over: what the interval of a difference is over where a method has several seeds: `seeds` (few seeds leave it
            wide), or `items`, with each item's mean over the seeds: what other pictures would change, not other seeds.

    Raises:
        DataError: if a folder holds no result, nothing is left to compare, the runs do not belong together, or
            there is no such baseline.
    """
    runs = _read(folders)
    notes = refuse_mixture(runs, force) + warnings_about(runs)
    teams = _teams(runs)
    first = _baseline(teams, baseline)
    methods = [_method(team, draws) for team in teams]
    change = partial(_change, draws=draws, over=over)
    found = runs[0].results
    differences = [
        _difference(key, team, first, change)
        for team in teams
        if team is not first
        for key in shown([method.values for method in methods])
    ]
    if over == "items":
        notes += _not_over_items(teams, differences)
    return Comparison(
        benchmark=found.benchmark,
        title=found.title,
        protocol=found.matrix.protocol,
        metric=found.matrix.metric,
        confidence=runs[0].confidence,
        tasks=[task.name for task in found.tasks],
        column_groups={column.name: column.group for column in _columns(runs[0])},
        baseline=first.label,
        methods=methods,
        leaders=_leaders(teams, methods, change),
        notes=notes,
        differences=differences,
        over=over,
    )


def _read(folders: Sequence[Path | str]) -> list[Run]:
    unique = {Path(folder).resolve(): Path(folder) for folder in folders}
    if not unique:
        raise DataError("nothing to compare: name one or more run folders.")
    runs = [Run(folder) for folder in unique.values()]
    for run in runs:
        if run.last < 0:
            raise DataError(f"{run.folder}: no row has been measured yet, there is nothing to compare.")
    return runs


def _columns(run: Run) -> list[Any]:
    return [*run.columns("known"), *run.columns("task"), *run.columns("retention")]


def _teams(runs: Sequence[Run]) -> list[Team]:
    settings = [_settings(run) for run in runs]
    grouped: dict[str, list[int]] = {}
    for index, found in enumerate(settings):
        grouped.setdefault(json.dumps(found, sort_keys=True, default=str), []).append(index)
    labels = _labels([(runs[group[0]].name, settings[group[0]]) for group in grouped.values()])
    return [
        Team(label, tuple(sorted((runs[i] for i in group), key=lambda run: run.results.seed)))
        for label, group in zip(labels, grouped.values(), strict=True)
    ]


def _settings(run: Run) -> dict[str, Any]:
    """Everything that decides a run's result but its seed, as dotted keys."""
    ignored = ("seed", "output", "checkpoint", "trackers", "report", "scenario", "evaluation")
    config = {key: value for key, value in run.config.items() if key not in ignored}
    training = config.get("training")
    if isinstance(training, Mapping):  # where a run was carried out does not make it another method
        config["training"] = {k: v for k, v in training.items() if k not in ("workers", "threads", "device")}
    described = {"method": run.results.method, "backbone": run.results.backbone}
    return flatten({"benchmark": run.results.benchmark, **(config or described), "name": run.name})


def _labels(found: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The method's name, with what is set differently where several teams share it."""
    labels: list[str] = []
    for name, settings in found:
        rivals = [other for label, other in found if label == name and other is not settings]
        keys = [key for key in settings if any(other.get(key) != settings[key] for other in rivals)]
        missing = [key for other in rivals for key in other if key not in settings]
        said = [f"{_short(key)}={settings[key]}" for key in keys]
        said += [f"no {_short(key)}" for key in dict.fromkeys(missing)]
        labels.append(f"{name} ({', '.join(said)})" if said else name)
    return labels


def _short(key: str) -> str:
    return key.removeprefix("method.settings.").removeprefix("training.")


def _baseline(teams: Sequence[Team], label: str | None) -> Team:
    if label is None:
        return teams[0]
    for team in teams:
        if team.label == label:
            return team
    raise DataError(
        f"baseline {label!r}: no such method.{did_you_mean(label, [team.label for team in teams])}"
    )


def _method(team: Team, draws: int) -> Method:
    first = team.runs[0]
    keys = dict.fromkeys((*QUANTITIES, *STAGED))
    members = [
        Member(
            folder=str(run.folder),
            seed=run.results.seed,
            status=run.results.status,
            tasks_learned=run.learned_count(run.last),
        )
        for run in team.runs
    ]
    return Method(
        label=team.label,
        name=first.name,
        members=members,
        values={key: _value(team, partial(metric, key=key, draws=draws)) for key in keys},
        columns={
            column.name: _value(team, partial(_of_column, name=column.name)) for column in _columns(first)
        },
        curves={key: _curve(team, key) for key in CURVES},
        seconds=_value(team, _seconds),
    )


def _seconds(run: Run) -> Estimate | None:
    spent = cost.total_seconds(run.results.cost)
    return None if spent is None else Estimate(value=spent)


def _of_column(run: Run, name: str) -> Estimate | None:
    column = next((column for column in run.results.columns if column.name == name), None)
    score = None if column is None else run.score(run.last, column)
    if score is None or score.value is None:
        return None
    return Estimate(value=score.value, low=score.low, high=score.high, how="of the set itself")


def _value(team: Team, of: Callable[[Run], Estimate | None]) -> Value | None:
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


def _at(run: Run, key: Key, row: int) -> Estimate | None:
    return estimate(run, terms(run, key, row))


def _curve(team: Team, key: Key) -> list[Point]:
    rows = min(run.last for run in team.runs) + 1
    points: list[Point] = []
    for row in range(rows):
        value = _value(team, partial(_at, key=key, row=row))
        if value is not None:
            points.append(Point(tasks=team.runs[0].learned_count(row), value=value))
    return points


def _difference(key: Key, team: Team, other: Team, changed: Changed) -> Difference:
    change = changed(key, team, other)
    why = "" if change is not None else _why_not(key, team, other)
    return Difference(quantity=key, method=team.label, baseline=other.label, change=change, why_not=why)


def _why_not(key: Key, team: Team, other: Team) -> str:
    """Say why there is no difference; what both lack for one reason is no method's own."""
    name = key if key in (*MATRIX, *STAGES) else f"{key}_last"
    lacking = [t for t in (team, other) if any(metric(run, key, 1) is None for run in t.runs)]
    whys = [why_undefined(name, t.runs[0].results) for t in lacking]
    if not lacking:
        return "not comparable"
    return whys[0] if whys == whys[:1] * 2 else f"{lacking[0].label}: {whys[0]}"


def _change(key: Key, team: Team, other: Team, *, draws: int, over: Over) -> Change | None:
    if len(team.runs) == len(other.runs) == 1 and key not in STAGES:
        mine, theirs = team.runs[0], other.runs[0]
        return difference(mine, terms(mine, key), theirs, terms(theirs, key), draws)
    if over == "items" and key not in STAGES:
        found = mean_difference(team.runs, other.runs, key, draws)
        if found is not None:
            return found
    mine_by_seed, theirs_by_seed = _by_seed(key, team), _by_seed(key, other)
    if mine_by_seed is None or theirs_by_seed is None:
        return None
    if (
        len(team.runs) > 1
        and mine_by_seed.keys() == theirs_by_seed.keys()
        and len(mine_by_seed) == len(team.runs) == len(other.runs)
    ):
        gaps = [mine_by_seed[seed] - theirs_by_seed[seed] for seed in mine_by_seed]
        spread = seed_spread(gaps, team.runs[0].confidence)
        low, high = spread.low, spread.high
        resolved = low is not None and high is not None and (low > 0 or high < 0)
        return Change(
            value=spread.mean,
            low=low,
            high=high,
            resolved=resolved,
            paired=True,
            how=f"t interval over {len(mine_by_seed)} paired seeds, items fixed",
        )
    return _unpaired(key, team, other, draws)


def _by_seed(key: Key, team: Team) -> dict[int, float] | None:
    found = {run.results.seed: value.value for run in team.runs if (value := metric(run, key, 1)) is not None}
    return found if all(metric(run, key, 1) is not None for run in team.runs) else None


def _not_over_items(teams: Sequence[Team], differences: Sequence[Difference]) -> list[str]:
    """Say whose intervals are not over items although that was asked for."""
    several = {team.label for team in teams if len(team.runs) > 1}
    fallen: dict[str, list[str]] = {}
    for found in differences:
        of_several = {found.method, found.baseline} & several
        if found.change is not None and of_several and not found.change.how.startswith(PAIRED):
            fallen.setdefault(LABELS[found.quantity], []).append(found.method)
    return [
        f"Intervals over items were asked for; of {name} they are over seeds ({', '.join(methods)}): its items are not "
        "in the results of all of these runs, or it is no mean over items."
        for name, methods in fallen.items()
    ]


def _unpaired(key: Key, team: Team, other: Team, draws: int) -> Change | None:
    a, b = (_value(t, lambda run: metric(run, key, draws)) for t in (team, other))
    if a is None or b is None:
        return None
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Change(value=a.value - b.value, resolved=False, how="no intervals are known")
    found = difference_interval(a.value, Interval(a.low, a.high), b.value, Interval(b.low, b.high))
    return Change(
        value=a.value - b.value,
        low=found.low,
        high=found.high,
        resolved=found.low > 0 or found.high < 0,
        how=f"not paired: {a.how}, and {b.how}",
    )


def _leaders(teams: Sequence[Team], methods: Sequence[Method], changed: Changed) -> list[str]:
    """Who is ahead on what was learned and on what was kept, and whether that is resolved.

    A method that learns everything at once is a bound and no rival, so it is named apart.
    """
    said: list[str] = []
    bounds = [i for i, team in enumerate(teams) if any(run.all_at_once for run in team.runs)]
    things: tuple[tuple[Key, str], ...] = (("new", "what is new"), ("known", "what was known before"))
    for key, thing in things:
        ranked = sorted(
            (
                (value, index)
                for index, method in enumerate(methods)
                if index not in bounds and (value := method.values[key]) is not None
            ),
            key=lambda entry: -entry[0].value,
        )
        if len(ranked) < 2:
            continue
        (best, i), (second, j) = ranked[:2]
        change = changed(key, teams[i], teams[j])
        ahead = f"{methods[i].label} is best at {thing}: {share(best)}"
        if change is not None and change.resolved:
            said.append(f"{ahead}, {whole_points(change.value)} points more than {methods[j].label}.")
        else:
            rival = f"{methods[j].label} has {whole_percent(second.value)}"
            said.append(f"{ahead}; {rival}, a difference that is not resolved.")
    for index in bounds:
        new, known = methods[index].values["new"], methods[index].values["known"]
        reached = [
            f"{share(value)} of {thing}" for value, thing in ((new, "the new"), (known, "the known")) if value
        ]
        if said and reached:
            said.append(
                f"{methods[index].label} learns everything at once and reaches {' and '.join(reached)}."
            )
    return said
