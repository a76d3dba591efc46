"""Sentences that say which method is best: on new sets, on known sets, and on both together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from everclip.report.comparison import Method
from everclip.report.estimates import Change
from everclip.report.seed_groups import SeedGroup
from everclip.report.sentences import headline, points_of, share, whole_percent

ChangeOf = Callable[[str, SeedGroup, SeedGroup], Change | None]

SUBJECTS: tuple[tuple[str, str], ...] = (
    ("new", "what is new"),
    ("known", "what was known before"),
    ("everything", "everything, old and new together"),
)


def best_methods(
    groups: Sequence[SeedGroup], methods: Sequence[Method], change_of: ChangeOf, before: Sequence[Method]
) -> list[str]:
    """Name the best method on new sets, on known sets and on both, and say whether its lead is resolved.

    A method that learns everything at once is an upper bound: it gets a sentence of its own. A method that learned
    fewer tasks than another had less to forget, so it is not ranked. For a single run, return its headline.
    """
    if len(groups) == 1 and len(groups[0].runs) == 1:
        return [headline(groups[0].runs[0])]
    bounds = [i for i, group in enumerate(groups) if any(run.all_at_once for run in group.runs)]
    done = [min(run.learned_count(run.last) for run in group.runs) for group in groups]
    unranked = [*bounds, *(i for i, learned in enumerate(done) if learned < max(done))]
    sentences = [
        text
        for key, subject in SUBJECTS
        if (text := _best_on(key, subject, groups, methods, change_of, before, unranked))
    ]
    return sentences + (_bounds(methods, bounds) if sentences else [])


def _best_on(
    key: str,
    subject: str,
    groups: Sequence[SeedGroup],
    methods: Sequence[Method],
    change_of: ChangeOf,
    before: Sequence[Method],
    unranked: Sequence[int],
) -> str:
    ranked = sorted(
        (
            (value, index)
            for index, method in enumerate(methods)
            if index not in unranked and (value := method.values[key]) is not None
        ),
        key=lambda entry: -entry[0].value,
    )
    if len(ranked) < 2:
        return ""
    (best, i), (second, j) = ranked[:2]
    lead = f"{methods[i].label} is best at {subject}: {share(best)}"
    change = change_of(key, groups[i], groups[j])
    start = before[0].values.get(key) if len(before) == 1 else None
    since = "" if start is None else f" (before training: {whole_percent(start.value)})"
    if change is not None and change.nothing:
        return f"{methods[i].label} and {methods[j].label} give the same answers on {subject}: {share(best)}{since}."
    if change is not None and change.resolved:
        return f"{lead}, {points_of(change.value)} more than {methods[j].label}{since}."
    both = f"{methods[i].label} and {methods[j].label} lead at {subject}"
    scores = f"{share(best)} and {whole_percent(second.value)}"
    return f"{both}: {scores}; the difference is not resolved{since}."


def _bounds(methods: Sequence[Method], bounds: Sequence[int]) -> list[str]:
    sentences = []
    for index in bounds:
        new, known = methods[index].values["new"], methods[index].values["known"]
        reached = [
            f"{share(value)} of {subject}"
            for value, subject in ((new, "what is new"), (known, "what was known before"))
            if value
        ]
        if reached:
            sentences.append(
                f"{methods[index].label} learns everything at once and reaches {' and '.join(reached)}."
            )
    return sentences
