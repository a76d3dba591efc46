"""The result of comparing runs, as typed data: `model_dump` gives its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from everclip.metrics import get, metrics
from everclip.report.estimates import Change, Estimate, metric_of_key
from everclip.report.formats import NOT_DEFINED, listed, number, plain_percent, span
from everclip.report.runs import Run

Over = Literal["seeds", "items"]
"""What the interval of a difference is over if a method has several seeds."""

AMONG_ALL = ("everything_new", "everything_old")
"""The parts of everything. They are shown if the headline's label space is not that of everything."""

SECONDS = "seconds"


def compared_keys() -> tuple[str, ...]:
    """Return the keys of all metrics that a comparison may show, in the order of its columns."""
    shown = [entry for entry in metrics("stream").values() if entry.shown is not None]
    return tuple(entry.key for entry in sorted(shown, key=lambda entry: entry.shown or 0))


def heading(key: str) -> str:
    """Return the column heading of a metric."""
    return get(key, "cost").label if key == SECONDS else metric_of_key(key).heading


def meaning(key: str) -> str:
    """Return the meaning of a metric as an entry of a list: without capital and full stop."""
    entry = metric_of_key(key)
    text = entry.meaning[:1].lower() + entry.meaning[1:].removesuffix(".")
    return f"{text}; lower is better" if entry.higher_is_better is False else text


class Part(BaseModel):
    """Base of all parts of a comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(Estimate):
    """A value of a method: of one run, or the mean over `seeds` runs with their standard deviation."""

    seeds: int = 1
    deviation: float | None = None


class Point(Part):
    """One point of a curve: how many tasks were learned, and the score at that row."""

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
        """The metrics that the tables show: those with a value for at least one method."""
        return tuple(key for key in self.quantities if key not in self.undefined)

    def without(self, *keys: str) -> Comparison:
        """Return the comparison without some metrics, for a shorter table."""
        kept = [key for key in self.quantities if key not in keys]
        return self.model_copy(
            update={
                "quantities": kept,
                "undefined": {key: why for key, why in self.undefined.items() if key in kept},
                "differences": [d for d in self.differences if d.quantity in kept],
            }
        )

    @property
    def left_out(self) -> str:
        """A line that names the metrics without any value, with the reason; empty if there are none."""
        whys: dict[str, list[str]] = {}
        for key, why in self.undefined.items():
            whys.setdefault(why, []).append(heading(key))
        lines = [f"{listed(names)} not defined: {why}" for why, names in whys.items()]
        return f"{'; '.join(lines)}." if lines else ""


def candidates(values: Sequence[Mapping[str, Value | None]], run: Run) -> tuple[str, ...]:
    """Return the metrics that a comparison of these methods considers."""

    def has(key: str) -> bool:
        return any(of_method.get(key) is not None for of_method in values)

    # If tasks are not scored before they are learned, the stage metrics replace those that need these scores.
    staged = has("stage_average") and not has("average")
    left_out = ["average", "transfer"] if staged else ["stage_average", "stage_last"]
    once = [entry.key for entry in metrics("stream").values() if "seen once" in entry.needs]
    if run.results.online is None:
        left_out += once
    else:
        left_out = ["average", "transfer", "stage_average", "stage_last", "forgetting", "new"]
    how = run.together
    if isinstance(how, str) or how.protocol == run.results.headline["protocol"]:
        left_out += AMONG_ALL
    return tuple(key for key in compared_keys() if key not in left_out)


def describe(value: Value | None, key: str) -> str:
    """Return a value of the main table as text: `46.2 (44.1–48.3)`, with `± sd` over seeds."""
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
    """Whether a metric is a share or a difference of shares. An empty key means the score of a set: a share."""
    return not key or metric_of_key(key).unit in ("percent", "points")
