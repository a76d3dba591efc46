"""Compare runs: group them by method, average over seeds, and compute differences with intervals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from everclip.errors import DataError, did_you_mean
from everclip.evaluation.metrics.cost import seconds
from everclip.evaluation.results import Results
from everclip.evaluation.statistics import Interval, seed_spread
from everclip.report.best_methods import ChangeOf, best_methods
from everclip.report.comparable import check_comparable, comparison_notes
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
    UNKNOWN,
    Change,
    Estimate,
    at_last_row,
    difference,
    mean_difference,
    metric_cells,
    metric_of_key,
)
from everclip.report.intervals import DRAWS, difference_interval
from everclip.report.runs import Run
from everclip.report.seed_groups import SeedGroup, at_row, before_training, group_value, seed_groups
from everclip.report.undefined import why_undefined
from everclip.training.run_place import local_run

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

    Runs that differ in nothing but the seed are one method, and its values are means over the seeds. Differences are
    taken against `baseline` (the first method by default). Their interval is one of three kinds, and every difference
    names its kind: a paired bootstrap over items if both methods are single runs with outcomes per item; a t interval
    over paired seeds if both have several; else an interval combined from both methods' own intervals.

    Args:
        folders: run folders, or their URLs.
        force: compare even if benchmark, headline or evaluation sets differ (a note names the difference).
        baseline: label of the method to subtract.
        draws: number of bootstrap draws.
        over: whether intervals of differences between methods with several seeds are over `seeds` (wide if there are
            few) or over `items`, with each item's mean over the seeds (they show the effect of other images alone).

    Raises:
        DataError: if a folder holds no result, there is nothing to compare, the runs are not comparable, or no method
            has the baseline's label.
    """
    runs = _read(folders)
    groups, cut = seed_groups(runs)
    notes = check_comparable(runs, force) + comparison_notes(runs) + cut
    first, results = _baseline(groups, baseline), runs[0].results
    methods = [_method(group, draws) for group in groups]
    change = partial(_change, draws=draws, over=over)
    before, start_notes = before_training(groups, compared_keys())
    notes += start_notes
    keys = candidates([method.values for method in methods], runs[0])
    undefined = _undefined(keys, methods, results)
    others = [group for group in groups if group is not first]
    asked = [key for key in keys if key not in undefined]
    differences = [_difference(key, group, first, change) for group in others for key in asked]
    if over == "items":
        notes += _not_over_items(groups, differences)
    return Comparison(
        benchmark=results.benchmark,
        title=results.title,
        protocol=results.matrix.protocol,
        metric=results.matrix.metric,
        confidence=runs[0].confidence,
        tasks=[task.name for task in results.tasks],
        column_groups={column.name: column.group for column in _columns(runs[0])},
        baseline=first.label,
        methods=methods,
        before=before,
        quantities=list(keys),
        undefined=undefined,
        leaders=best_methods(groups, methods, change, before),
        notes=notes,
        differences=differences,
        over=over,
    )


def _undefined(keys: Sequence[str], methods: Sequence[Method], results: Results) -> dict[str, str]:
    """Return the keys without a value in any method, each with the reason: they get no column."""
    lacking = [key for key in keys if all(method.values[key] is None for method in methods)]
    return {key: why_undefined(metric_of_key(key).name, results) for key in lacking}


def _read(folders: Sequence[Path | str]) -> list[Run]:
    unique = {os.path.realpath(local_run(folder)): folder for folder in folders}
    if not unique:
        raise DataError("nothing to compare: name one or more run folders.")
    runs = [Run(folder) for folder in unique.values()]
    for run in runs:
        if run.last < 0:
            raise DataError(f"{run.place}: no row has been measured yet, so there is nothing to compare.")
    return runs


def _columns(run: Run) -> list[Any]:
    return [*run.columns("known"), *run.columns("task"), *run.columns("retention")]


def _baseline(groups: Sequence[SeedGroup], label: str | None) -> SeedGroup:
    if label is None:
        return groups[0]
    # The full name works too if only one method has it: labels may be shortened.
    named = [group for group in groups if group.label == label] or [
        t for t in groups if t.runs[0].name == label
    ]
    if len(named) == 1:
        return named[0]
    what = "several methods have this name" if named else "no such method"
    raise DataError(f"baseline {label!r}: {what}.{did_you_mean(label, [group.label for group in groups])}")


def _method(group: SeedGroup, draws: int) -> Method:
    first = group.runs[0]
    members = [
        Member(
            folder=run.place,
            seed=run.results.seed,
            status=run.results.status,
            tasks_learned=run.learned_count(run.last),
        )
        for run in group.runs
    ]
    return Method(
        label=group.label,
        name=first.name,
        members=members,
        values={
            key: group_value(group, partial(at_last_row, key=key, draws=draws)) for key in compared_keys()
        },
        columns={
            column.name: group_value(group, partial(_of_column, name=column.name))
            for column in _columns(first)
        },
        curves={key: _curve(group, key) for key in CURVES},
        seconds=group_value(group, _seconds),
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


def _curve(group: SeedGroup, key: str) -> list[Point]:
    rows = min(run.last for run in group.runs) + 1
    points: list[Point] = []
    for row in range(rows):
        value = group_value(group, partial(at_row, key=key, row=row))
        if value is not None:
            points.append(Point(tasks=group.runs[0].learned_count(row), value=value))
    return points


def _difference(key: str, group: SeedGroup, other: SeedGroup, change_of: ChangeOf) -> Difference:
    change = change_of(key, group, other)
    why = "" if change is not None else _why_not(key, group, other)
    return Difference(quantity=key, method=group.label, baseline=other.label, change=change, why_not=why)


def _why_not(key: str, group: SeedGroup, other: SeedGroup) -> str:
    """Say why there is no difference; name a method only if the reason is not the same for both."""
    name = metric_of_key(key).name
    lacking = [t for t in (group, other) if any(at_last_row(run, key, 1) is None for run in t.runs)]
    whys = [why_undefined(name, t.runs[0].results) for t in lacking]
    if not lacking:
        return "not comparable"
    return whys[0] if whys == whys[:1] * 2 else f"{lacking[0].label}: {whys[0]}"


def _change(key: str, group: SeedGroup, other: SeedGroup, *, draws: int, over: Over) -> Change | None:
    if len(group.runs) == len(other.runs) == 1:
        mine, theirs = group.runs[0], other.runs[0]
        return difference(mine, metric_cells(mine, key), theirs, metric_cells(theirs, key), draws)
    if over == "items":
        over_items = mean_difference(group.runs, other.runs, key, draws)
        if over_items is not None:
            return over_items
    mine_by_seed, theirs_by_seed = _by_seed(key, group), _by_seed(key, other)
    if mine_by_seed is None or theirs_by_seed is None:
        return None
    if (
        len(group.runs) > 1
        and mine_by_seed.keys() == theirs_by_seed.keys()
        and len(mine_by_seed) == len(group.runs) == len(other.runs)
    ):
        gaps = [mine_by_seed[seed] - theirs_by_seed[seed] for seed in mine_by_seed]
        spread = seed_spread(gaps, group.runs[0].confidence)
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
    return _unpaired(key, group, other, draws)


def _by_seed(key: str, group: SeedGroup) -> dict[int, float] | None:
    found = {
        run.results.seed: value.value for run in group.runs if (value := at_last_row(run, key, 1)) is not None
    }
    return found if all(at_last_row(run, key, 1) is not None for run in group.runs) else None


def _not_over_items(groups: Sequence[SeedGroup], differences: Sequence[Difference]) -> list[str]:
    """Name the intervals that are over seeds although intervals over items were asked for."""
    several = {group.label for group in groups if len(group.runs) > 1}
    over_seeds: dict[str, list[str]] = {}
    for d in differences:
        several_seeds = {d.method, d.baseline} & several
        if d.change is not None and several_seeds and not d.change.how.startswith(PAIRED):
            over_seeds.setdefault(heading(d.quantity), []).append(d.method)
    return [
        f"Intervals over items were asked for, but those of {name} are over seeds ({', '.join(methods)}): some runs "
        f"hold no outcomes per item, or {name} is not a mean over items."
        for name, methods in over_seeds.items()
    ]


def _unpaired(key: str, group: SeedGroup, other: SeedGroup, draws: int) -> Change | None:
    a, b = (group_value(t, lambda run: at_last_row(run, key, draws)) for t in (group, other))
    if a is None or b is None:
        return None
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Change(value=a.value - b.value, resolved=False, how=UNKNOWN)
    interval = difference_interval(a.value, Interval(a.low, a.high), b.value, Interval(b.low, b.high))
    return Change(
        value=a.value - b.value,
        low=interval.low,
        high=interval.high,
        resolved=interval.low > 0 or interval.high < 0,
        how=f"not paired: {a.how}, and {b.how}",
    )
