"""What a comparison of runs says, as typed data: `model_dump` gives its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from everclip.report.formats import NOT_DEFINED, number, plain_percent, span
from everclip.report.quantities import Change, Estimate, Key

Over = Literal["seeds", "items"]
"""What an interval of a difference is over, where a method has several seeds."""

QUANTITIES: tuple[Key, ...] = ("known", "new", "retention", "transfer", "average", "forgetting")
STAGED: tuple[Key, ...] = ("known", "new", "retention", "stage_last", "stage_average", "forgetting")
"""What is shown where tasks are not scored before they are learned, so that Transfer and Average do not exist."""

LABELS = {
    "known": "Known",
    "new": "Last",
    "retention": "Retention",
    "transfer": "Transfer",
    "average": "Average",
    "forgetting": "Forgetting",
    "stage_last": "Last, by pictures",
    "stage_average": "Avg, by pictures",
    "seconds": "Seconds",
}
MEANINGS = {
    "known": "what was known before the stream, at the last row",
    "new": "mean of all task sets at the last row (MTIL Last)",
    "retention": "mean of the sets never trained on, at the last row",
    "transfer": "mean of tasks before they are learned, per task, then over tasks (MTIL Transfer)",
    "average": "mean of all cells of the task matrix (MTIL Average)",
    "forgetting": "mean fall of earlier tasks from their best earlier row (Chaudhry), lower is better",
    "stage_last": "over all test pictures of what was learned, at the last row (CIL Last)",
    "stage_average": "mean over the rows of the score over all test pictures of what was learned by then (CIL Avg)",
}


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
    """`method` minus `baseline` for one quantity."""

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
    differences: list[Difference]
    leaders: list[str]
    notes: list[str]
    over: Over = "seeds"

    @property
    def shown(self) -> tuple[Key, ...]:
        """The quantities that its tables show."""
        return shown([method.values for method in self.methods])


def shown(values: Sequence[Mapping[str, Value | None]]) -> tuple[Key, ...]:
    """Return which quantities a comparison of these methods shows."""

    def has(key: str) -> bool:
        return any(found.get(key) is not None for found in values)

    return STAGED if has("stage_average") and not has("average") else QUANTITIES


def describe(value: Value | None, key: str) -> str:
    """Return a number of the main table as text: `46.2 (44.1–48.3)`, with `± sd` over seeds."""
    if value is None:
        return NOT_DEFINED
    if key == "seconds":
        spread = f" ± {number(value.deviation)}" if value.deviation is not None else ""
        return f"{number(value.value)}{spread}"
    interval = span(value.low, value.high, 1)
    spread = f" ± {plain_percent(value.deviation)}" if value.deviation is not None else ""
    return f"{plain_percent(value.value)}{spread}" + (f" ({interval})" if interval else "")
