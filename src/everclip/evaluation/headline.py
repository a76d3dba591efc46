"""Which metric stands for an evaluation set: the headline's where its kind has it, else its kind's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everclip.contracts import EvalSet
from everclip.errors import ConfigError, did_you_mean
from everclip.evaluation.results import Column
from everclip.metrics import AUTO, Kind, cut, find

OWN: dict[Kind, str] = {"classification": "accuracy", "retrieval": "mean_r1"}
"""What a set of each kind shows where the headline does not say otherwise."""


def metric_of(column: Column, headline: Mapping[str, str]) -> str:
    """Return the metric that stands for a column.

    Columns of another kind than the headline's metric (a retention set that is classified, say) show their own.
    """
    kind: Kind = "classification" if column.kind == "classification" else "retrieval"
    name = headline["metric"]
    if name == AUTO:
        return OWN[kind]
    return name if (find(name, "classification") is not None) == (kind == "classification") else OWN[kind]


def check_headline(sets: Sequence[EvalSet], metric: str, top_k: Sequence[int]) -> None:
    """Check before a run starts that the task sets will have the headline's metric.

    Raises:
        ConfigError: if they will not; lists what they will have.
    """
    kinds: tuple[Kind, ...] = ("classification", "retrieval")
    measured: dict[str, list[str]] = {kind: [entry.name for entry, _ in cut(kind, top_k)] for kind in kinds}
    measured["pairs"] = []
    for s in (s for s in sets if s.group == "task"):
        wanted = OWN[s.kind] if metric == AUTO and s.kind != "pairs" else metric
        if wanted not in measured[s.kind]:
            raise ConfigError(
                f"scenario.headline.metric: {wanted!r} is not measured on {s.name!r} ({s.kind}, "
                f"evaluation.top_k={list(top_k)}).{did_you_mean(wanted, measured[s.kind])}"
            )
