"""What a comparison of runs says, as typed data: `model_dump` gives its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from everclip.report.formats import NOT_DEFINED, listed, number, plain_percent, span
from everclip.report.quantities import MATRIX, STAGES, Change, Estimate, Key
from everclip.report.runs import Run

Over = Literal["seeds", "items"]
"""What an interval of a difference is over, where a method has several seeds."""

TRADE: tuple[Key, ...] = ("new", "known", "everything")
"""What decides: what was gained, what was kept, and both together."""

AMONG_ALL: tuple[Key, ...] = ("everything_new", "everything_old")
"""The parts of everything, where the headline has other answers on offer than everything has."""

QUANTITIES: tuple[Key, ...] = (*TRADE, *AMONG_ALL, "retention", "transfer", "average", "forgetting")
STAGED: tuple[Key, ...] = (*TRADE, *AMONG_ALL, "retention", "stage_last", "stage_average", "forgetting")
"""What is shown where tasks are not scored before they are learned, so that Transfer and Average do not exist."""

LABELS = {
    "known": "Known",
    "new": "New",
    "everything": "Everything",
    "everything_new": "New, among all",
    "everything_old": "Known, among all",
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
    "everything": "all test pictures, old and new, among the answers of all sets, at the last row",
    "everything_new": "the part of everything that is new",
    "everything_old": "the part of everything that was known before",
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
    before: list[Method]
    quantities: list[Key]
    undefined: dict[str, str]
    differences: list[Difference]
    leaders: list[str]
    notes: list[str]
    over: Over = "seeds"

    @property
    def shown(self) -> tuple[Key, ...]:
        """The quantities that its tables show: those of which a method has a value."""
        return tuple(key for key in self.quantities if key not in self.undefined)

    @property
    def left_out(self) -> str:
        """A line that names what no method has a value of, and why; empty if nothing is left out."""
        whys: dict[str, list[str]] = {}
        for key, why in self.undefined.items():
            whys.setdefault(why, []).append(LABELS[key])
        said = [f"{listed(names)} not defined: {why}" for why, names in whys.items()]
        return f"{'; '.join(said)}." if said else ""


def result_name(key: Key) -> str:
    """Return what a quantity is called in the metrics of a result."""
    return key if key in (*MATRIX, *STAGES) else f"{key}_last"


def candidates(values: Sequence[Mapping[str, Value | None]], run: Run) -> tuple[Key, ...]:
    """Return which quantities a comparison of these methods is about."""

    def has(key: str) -> bool:
        return any(found.get(key) is not None for found in values)

    found = STAGED if has("stage_average") and not has("average") else QUANTITIES
    how = run.together
    if isinstance(how, str) or how.protocol == run.results.headline["protocol"]:
        found = tuple(key for key in found if key not in AMONG_ALL)
    return found


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
