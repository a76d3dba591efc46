"""What a comparison of runs says, as typed data: `model_dump` gives its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from everclip.metrics import get, metrics
from everclip.report.estimates import Change, Estimate, metric_of_key
from everclip.report.formats import NOT_DEFINED, listed, number, plain_percent, span
from everclip.report.runs import Run

Over = Literal["seeds", "items"]
"""What an interval of a difference is over, where a method has several seeds."""

AMONG_ALL = ("everything_new", "everything_old")
"""The parts of everything, where the headline has other answers on offer than everything has."""

SECONDS = "seconds"


def compared_keys() -> tuple[str, ...]:
    """Return the keys of all that a comparison may show: what was gained, what was kept, both together, details."""
    shown = [entry for entry in metrics("stream").values() if entry.shown is not None]
    return tuple(entry.key for entry in sorted(shown, key=lambda entry: entry.shown or 0))


def heading(key: str) -> str:
    """Return what a metric is called at the head of a column."""
    return get(key, "cost").label if key == SECONDS else metric_of_key(key).heading


def meaning(key: str) -> str:
    """Return what a metric means, for a list: no capital, no full stop."""
    entry = metric_of_key(key)
    text = entry.meaning[:1].lower() + entry.meaning[1:].removesuffix(".")
    return f"{text}; lower is better" if entry.higher_is_better is False else text


class Part(BaseModel):
    """Base of all parts of a comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(Estimate):
    """A number of a method: of one run, or the mean over `seeds` of them with their standard deviation."""

    seeds: int = 1
    deviation: float | None = None


class Point(Part):
    """One place of a curve: how many tasks were learned, and the score there."""

    tasks: int
    value: Value


class Member(Part):
    """One run of a method."""

    folder: str
    seed: int
    status: str
    tasks_learned: int


class Method(Part):
    """All runs of one method with the same settings."""

    label: str
    name: str
    members: list[Member]
    values: dict[str, Value | None]
    columns: dict[str, Value | None]
    curves: dict[str, list[Point]]
    seconds: Value | None


class Difference(Part):
    """`method` minus `baseline` for one metric, named by its key."""

    quantity: str
    method: str
    baseline: str
    change: Change | None
    why_not: str = ""


class Comparison(Part):
    """Methods side by side on one benchmark."""

    benchmark: str
    title: str
    protocol: str
    metric: str
    confidence: float
    tasks: list[str]
    column_groups: dict[str, str]
    baseline: str
    methods: list[Method]
    before: list[Method]
    quantities: list[str]
    undefined: dict[str, str]
    differences: list[Difference]
    leaders: list[str]
    notes: list[str]
    over: Over = "seeds"

    @property
    def shown(self) -> tuple[str, ...]:
        """The metrics that its tables show: those of which a method has a value."""
        return tuple(key for key in self.quantities if key not in self.undefined)

    @property
    def left_out(self) -> str:
        """A line that names what no method has a value of, and why; empty if nothing is left out."""
        whys: dict[str, list[str]] = {}
        for key, why in self.undefined.items():
            whys.setdefault(why, []).append(heading(key))
        said = [f"{listed(names)} not defined: {why}" for why, names in whys.items()]
        return f"{'; '.join(said)}." if said else ""


def candidates(values: Sequence[Mapping[str, Value | None]], run: Run) -> tuple[str, ...]:
    """Return which metrics a comparison of these methods is about."""

    def has(key: str) -> bool:
        return any(found.get(key) is not None for found in values)

    # Where tasks are not scored before they are learned, stages stand for what needs these scores.
    staged = has("stage_average") and not has("average")
    left_out = ["average", "transfer"] if staged else ["stage_average", "stage_last"]
    how = run.together
    if isinstance(how, str) or how.protocol == run.results.headline["protocol"]:
        left_out += AMONG_ALL
    return tuple(key for key in compared_keys() if key not in left_out)


def describe(value: Value | None, key: str) -> str:
    """Return a number of the main table as text: `46.2 (44.1–48.3)`, with `± sd` over seeds."""
    if value is None:
        return NOT_DEFINED
    if key == SECONDS:
        spread = f" ± {number(value.deviation)}" if value.deviation is not None else ""
        return f"{number(value.value)}{spread}"
    if not is_share(key):
        return number(value.value, 3)
    interval = span(value.low, value.high, 1)
    spread = f" ± {plain_percent(value.deviation)}" if value.deviation is not None else ""
    return f"{plain_percent(value.value)}{spread}" + (f" ({interval})" if interval else "")


def is_share(key: str) -> bool:
    """Whether a metric (by its key; nothing for the score of a set) is a share or a difference of shares."""
    return not key or metric_of_key(key).unit in ("percent", "points")
