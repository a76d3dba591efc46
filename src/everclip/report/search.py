"""Search in runs that learn classes: from a name to its image, if the stream measures this too (`evaluate_also`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everclip.evaluation.results import Results, Row
from everclip.evaluation.statistics import wilson
from everclip.report.estimates import Estimate
from everclip.report.runs import Run
from everclip.report.seed_groups import seed_groups

METRIC = "text_to_image_r1"
BEFORE = "before"


@dataclass(frozen=True)
class Search:
    """Recall@1 from names to images, over all names of a kind; intervals are Wilson's.

    Attributes:
        label: the method, with what tells it apart from the others, or `before`.
        new: over the names of all tasks.
        known: over the names of the base.
    """

    label: str
    new: Estimate
    known: Estimate


def search(runs: Sequence[Run]) -> list[Search]:
    """Return what search finds before training, and after the last row of each run; empty if a run measured none."""
    labelled = [
        (run, group.label if len(group.runs) == 1 else f"{group.label}, seed {run.results.seed}")
        for group in seed_groups(runs)[0]
        for run in group.runs
    ]
    found = [_searched(run.results, run.results.rows[-1], label) for run, label in labelled]
    first = _searched(runs[0].results, runs[0].results.rows[0], BEFORE) if runs else None
    every = [first, *found]
    return [each for each in every if each is not None] if all(every) else []


def _searched(results: Results, row: Row, label: str) -> Search | None:
    """Return the search of one row; `None` if the base or the tasks have no second measure by retrieval."""
    task_kinds = {column.kind for column in results.columns if column.group == "task"}
    columns = [c for c in results.columns if c.group == "part" and c.kind == "retrieval"]
    if "retrieval" in task_kinds:
        return None
    protocol = results.headline["protocol"]
    scores: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    for column in columns:
        score = row.scores.get(column.name, {}).get(protocol, {}).get(METRIC)
        if score is not None and score.value is not None:
            scores[column.task is not None].append((score.value, score.n))
    if not all(scores.values()):
        return None
    return Search(label, *(_together(scores[new]) for new in (True, False)))


def _together(scores: Sequence[tuple[float, int]]) -> Estimate:
    """Return the score over all queries of several sets."""
    count = sum(n for _, n in scores)
    right = round(sum(value * n for value, n in scores))
    interval = wilson(right, count)
    return Estimate(value=right / count, low=interval.low, high=interval.high)
