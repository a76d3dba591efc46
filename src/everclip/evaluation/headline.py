"""Choose the metric that an evaluation set shows: the headline's metric if it fits, else the default of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everclip.contracts import EvalSet
from everclip.errors import ConfigError, did_you_mean
from everclip.evaluation.results import Column
from everclip.metrics import AUTO, Kind, cut, find

DEFAULT_METRIC: dict[Kind, str] = {
    "classification": "accuracy",
    "retrieval": "mean_r1",
    "pairs": "pair_text_to_image",
    "multi-image": "multi_image_accuracy",
}
"""The metric of each kind of set if the headline's metric does not fit."""

NEVER_TASKS: tuple[Kind, ...] = ("pairs", "multi-image")
"""Kinds of sets that only the retention suite has."""


def metric_of(column: Column, headline: Mapping[str, str]) -> str:
    """Return the metric that a column shows.

    A column that the headline's metric does not fit (such as a retention set with classes) shows the default metric of
    its kind.
    """
    kind: Kind = column.kind
    name = headline["metric"]
    if name == AUTO or (kind in NEVER_TASKS and find(name, kind) is None):
        return DEFAULT_METRIC[kind]
    if kind in NEVER_TASKS:
        return name
    return (
        name
        if (find(name, "classification") is not None) == (kind == "classification")
        else DEFAULT_METRIC[kind]
    )


def check_headline(sets: Sequence[EvalSet], metric: str, top_k: Sequence[int]) -> None:
    """Check before a run starts that the headline's metric will be measured on the task sets.

    Raises:
        ConfigError: if it will not be; suggests one that will.
    """
    kinds: tuple[Kind, ...] = ("classification", "retrieval")
    measured: dict[str, list[str]] = {kind: [entry.name for entry, _ in cut(kind, top_k)] for kind in kinds}
    measured |= {kind: [] for kind in NEVER_TASKS}
    for s in (s for s in sets if s.group == "task"):
        wanted = DEFAULT_METRIC[s.kind] if metric == AUTO and s.kind not in NEVER_TASKS else metric
        if wanted not in measured[s.kind]:
            raise ConfigError(
                f"scenario.headline.metric: {wanted!r} is not measured on {s.name!r} ({s.kind}, "
                f"evaluation.top_k={list(top_k)}).{did_you_mean(wanted, measured[s.kind])}"
            )
