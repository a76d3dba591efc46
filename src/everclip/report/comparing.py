"""Runs side by side: grouped by method, several seeds as mean and spread, differences with intervals."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from everclip.errors import DataError, did_you_mean
from everclip.evaluation.metrics.cost import seconds
from everclip.evaluation.results import Results
from everclip.evaluation.statistics import Interval, seed_spread
from everclip.report.comparison import (
    Comparison,
    Difference,
    Member,
    Method,
    Over,
    Point,
    candidates,
    compared_keys,
    heading,
)
from everclip.report.estimates import (
    PAIRED,
    Change,
    Estimate,
    at_end,
    difference,
    mean_difference,
    metric_of_key,
    terms,
)
from everclip.report.intervals import DRAWS, difference_interval
from everclip.report.labels import labels_of, settings_of
from everclip.report.leaders import Changed, leaders
from everclip.report.mixing import refuse_mixture, warnings_about
from everclip.report.runs import Run
from everclip.report.teams import Team, at_row, before_training, value_of
from everclip.report.undefined import why_undefined

CURVES = ("everything", "known", "new", "retention")


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
    teams, cut = _teams(runs)
    notes = refuse_mixture(runs, force) + warnings_about(runs) + cut
    first = _baseline(teams, baseline)
    methods = [_method(team, draws) for team in teams]
    change = partial(_change, draws=draws, over=over)
    found = runs[0].results
    before, alike = before_training(teams, compared_keys())
    notes += alike
    keys = candidates([method.values for method in methods], runs[0])
    undefined = _undefined(keys, methods, found)
    rivals = [team for team in teams if team is not first]
    differences = [_difference(k, team, first, change) for team in rivals for k in keys if k not in undefined]
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
        before=before,
        quantities=list(keys),
        undefined=undefined,
        leaders=leaders(teams, methods, change, before),
        notes=notes,
        differences=differences,
        over=over,
    )


def _undefined(keys: Sequence[str], methods: Sequence[Method], found: Results) -> dict[str, str]:
    """Return what no method has a value of, and why: it gets no column."""
    lacking = [key for key in keys if all(method.values[key] is None for method in methods)]
    return {key: why_undefined(metric_of_key(key).name, found) for key in lacking}


def _read(folders: Sequence[Path | str]) -> list[Run]:
    unique = {os.path.realpath(folder): Path(folder) for folder in folders}
    if not unique:
        raise DataError("nothing to compare: name one or more run folders.")
    runs = [Run(folder) for folder in unique.values()]
    for run in runs:
        if run.last < 0:
            raise DataError(f"{run.folder}: no row has been measured yet, there is nothing to compare.")
    return runs


def _columns(run: Run) -> list[Any]:
    return [*run.columns("known"), *run.columns("task"), *run.columns("retention")]


def _teams(runs: Sequence[Run]) -> tuple[list[Team], list[str]]:
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(json.dumps(settings_of(run), sort_keys=True, default=str), []).append(run)
    labels, notes = labels_of(list(grouped.values()))
    teams = [
        Team(label, tuple(sorted(group, key=lambda run: run.results.seed)))
        for label, group in zip(labels, grouped.values(), strict=True)
    ]
    return teams, notes


def _baseline(teams: Sequence[Team], label: str | None) -> Team:
    if label is None:
        return teams[0]
    # What a label cut off may be written out, as long as one method alone is called so.
    named = [team for team in teams if team.label == label] or [t for t in teams if t.runs[0].name == label]
    if len(named) == 1:
        return named[0]
    what = "several methods are called so" if named else "no such method"
    raise DataError(f"baseline {label!r}: {what}.{did_you_mean(label, [team.label for team in teams])}")


def _method(team: Team, draws: int) -> Method:
    first = team.runs[0]
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
        values={key: value_of(team, partial(at_end, key=key, draws=draws)) for key in compared_keys()},
        columns={
            column.name: value_of(team, partial(_of_column, name=column.name)) for column in _columns(first)
        },
        curves={key: _curve(team, key) for key in CURVES},
        seconds=value_of(team, _seconds),
    )


def _seconds(run: Run) -> Estimate | None:
    spent = seconds(run.results.cost)
    return None if spent is None else Estimate(value=spent)


def _of_column(run: Run, name: str) -> Estimate | None:
    column = next((column for column in run.results.columns if column.name == name), None)
    score = None if column is None else run.score(run.last, column)
    if score is None or score.value is None:
        return None
    return Estimate(value=score.value, low=score.low, high=score.high, how="of the set itself")


def _curve(team: Team, key: str) -> list[Point]:
    rows = min(run.last for run in team.runs) + 1
    points: list[Point] = []
    for row in range(rows):
        value = value_of(team, partial(at_row, key=key, row=row))
        if value is not None:
            points.append(Point(tasks=team.runs[0].learned_count(row), value=value))
    return points


def _difference(key: str, team: Team, other: Team, changed: Changed) -> Difference:
    change = changed(key, team, other)
    why = "" if change is not None else _why_not(key, team, other)
    return Difference(quantity=key, method=team.label, baseline=other.label, change=change, why_not=why)


def _why_not(key: str, team: Team, other: Team) -> str:
    """Say why there is no difference; what both lack for one reason is no method's own."""
    name = metric_of_key(key).name
    lacking = [t for t in (team, other) if any(at_end(run, key, 1) is None for run in t.runs)]
    whys = [why_undefined(name, t.runs[0].results) for t in lacking]
    if not lacking:
        return "not comparable"
    return whys[0] if whys == whys[:1] * 2 else f"{lacking[0].label}: {whys[0]}"


def _change(key: str, team: Team, other: Team, *, draws: int, over: Over) -> Change | None:
    if len(team.runs) == len(other.runs) == 1:
        mine, theirs = team.runs[0], other.runs[0]
        return difference(mine, terms(mine, key), theirs, terms(theirs, key), draws)
    if over == "items":
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


def _by_seed(key: str, team: Team) -> dict[int, float] | None:
    found = {run.results.seed: value.value for run in team.runs if (value := at_end(run, key, 1)) is not None}
    return found if all(at_end(run, key, 1) is not None for run in team.runs) else None


def _not_over_items(teams: Sequence[Team], differences: Sequence[Difference]) -> list[str]:
    """Say whose intervals are not over items although that was asked for."""
    several = {team.label for team in teams if len(team.runs) > 1}
    fallen: dict[str, list[str]] = {}
    for found in differences:
        of_several = {found.method, found.baseline} & several
        if found.change is not None and of_several and not found.change.how.startswith(PAIRED):
            fallen.setdefault(heading(found.quantity), []).append(found.method)
    return [
        f"Intervals over items were asked for; of {name} they are over seeds ({', '.join(methods)}): its items are not "
        "in the results of all of these runs, or it is no mean over items."
        for name, methods in fallen.items()
    ]


def _unpaired(key: str, team: Team, other: Team, draws: int) -> Change | None:
    a, b = (value_of(t, lambda run: at_end(run, key, draws)) for t in (team, other))
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
