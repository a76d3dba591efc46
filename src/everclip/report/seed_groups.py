"""Runs of one method grouped over seeds: the values of a single run, or mean and spread over the seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from everclip.evaluation.statistics import seed_spread
from everclip.report.comparison import Method, Value
from everclip.report.estimates import Estimate, estimate, is_together, metric_cells
from everclip.report.labels import labels_of, settings_of
from everclip.report.runs import Run


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one method that differ in nothing but the seed, sorted by seed."""

    label: str
    runs: tuple[Run, ...]


def seed_groups(runs: Sequence[Run]) -> tuple[list[SeedGroup], list[str]]:
    """Group runs that differ in nothing but the seed.

    Returns:
        The groups in the order of their first runs, and notes on differences that the labels do not show.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(json.dumps(settings_of(run), sort_keys=True, default=str), []).append(run)
    labels, notes = labels_of(list(grouped.values()))
    groups = [
        SeedGroup(label, tuple(sorted(group, key=lambda run: run.results.seed)))
        for label, group in zip(labels, grouped.values(), strict=True)
    ]
    return groups, notes


def group_value(group: SeedGroup, of: Callable[[Run], Estimate | None]) -> Value | None:
    """Return the value of a group: of its only run, or mean and spread over seeds; `None` if a run lacks it."""
    found = [estimated for run in group.runs if (estimated := of(run)) is not None]
    if len(found) != len(group.runs):
        return None
    if len(found) == 1:
        return Value(**found[0].model_dump())
    spread = seed_spread([estimated.value for estimated in found], group.runs[0].confidence)
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
    return estimate(run, metric_cells(run, key, row))


def before_training(groups: Sequence[SeedGroup], keys: Sequence[str]) -> tuple[list[Method], list[str]]:
    """Return the start model as a method of its own: one entry per distinct start model.

    Returns:
        The entries, and notes for the reader.
    """
    starts: list[tuple[dict[str, Value | None], list[SeedGroup]]] = []
    for group in groups:
        values: dict[str, Value | None] = {key: _start(group, key) for key in keys}
        index = next((i for i, (other, _) in enumerate(starts) if _equal_values(other, values)), None)
        if index is None:
            starts.append((values, [group]))
        else:
            other, members = starts[index]
            # One run may lack a value that another has, such as that of a retention set.
            starts[index] = ({key: other[key] or values[key] for key in values}, [*members, group])
    methods = []
    for values, members in starts:
        label = "before" if len(starts) == 1 else f"before ({', '.join(group.label for group in members)})"
        methods.append(
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
    return methods, _notes(groups[0].runs[0])


def _equal_values(first: Mapping[str, Value | None], second: Mapping[str, Value | None]) -> bool:
    """Whether two start models agree in every value that both have."""
    pairs = ((a, second[key]) for key, a in first.items())
    return all(abs(a.value - b.value) < 1e-6 for a, b in pairs if a is not None and b is not None)


def _start(group: SeedGroup, key: str) -> Value | None:
    if is_together(key) and any(_grows(run) for run in group.runs):
        return None
    found = group_value(group, partial(at_row, key=key, row=0))
    if found is not None and found.deviation is not None and found.deviation < 1e-9:
        first = at_row(group.runs[0], key, 0)  # nothing was random yet: take its interval over the images
        return None if first is None else Value(**first.model_dump())
    return found


def _grows(run: Run) -> bool:
    return not isinstance(run.together, str) and run.together.grows


def _notes(run: Run) -> list[str]:
    shown = run.results.headline["protocol"]
    if not any(p["name"] == shown and p.get("space") == "seen" for p in run.results.protocols):
        return []
    return [
        f"Under the protocol {shown} there are more names to choose from after every task. The row `before` had fewer "
        "names to choose from, so a difference to it does not show learning alone."
    ]
