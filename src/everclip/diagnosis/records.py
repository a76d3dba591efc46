"""The diagnosis of an update as plain records: what `diagnosis.json` holds. Shares are in [0, 1]."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from everclip.metrics import Kind
from everclip.report.estimates import Estimate
from everclip.report.over_time import OverTime
from everclip.report.paired import SetPair

Role = Literal["kept", "new"]
"""Whether a set measures what the old model knew and must keep, or what the new one has learned."""

State = Literal["safe", "unsafe", "unclear", "unmeasured", "unchanged"]


class Record(BaseModel):
    """A part of the diagnosis."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(Record):
    """A model's answer to an image, its probability, and that of the right answer."""

    answer: str
    probability: float
    right_probability: float


class FlippedImage(Record):
    """An image whose answer became wrong (`lost`) or right (`gained`)."""

    id: str
    position: int
    truth: str
    lost: bool
    old: Answer
    new: Answer


class FlipCounts(Record):
    """Items that an update breaks and repairs (Yan et al., arXiv 2011.09161).

    Attributes:
        event: what an item is right in, such as `accuracy`.
        items: number of items.
        negative: share that was right and is wrong now, with Wilson's interval.
        positive: share that was wrong and is right now.
        relative_negative: `negative / (old right * new wrong)`: 1 if the two models err independently.
    """

    event: str
    items: int
    negative: Estimate
    positive: Estimate
    relative_negative: float | None


class PartChange(Record):
    """Old and new score of a class or of a group of rows.

    `p` is the probability of so unequal numbers of lost and gained items by chance (exact McNemar test); `resolved` if
    it passes the Benjamini-Hochberg procedure over all parts of the set at the chosen confidence. `None` where outcomes
    are no hits.
    """

    name: str
    items: int
    old: float
    new: float
    lost: int
    gained: int
    p: float | None
    resolved: bool


class ReliabilityBins(Record):
    """Calibration of one model: per bin of the top probability the number of items, their accuracy and confidence."""

    error: float
    confidence: float
    accuracy: float
    logit_scale: float
    counts: list[int]
    accuracies: list[float | None]
    confidences: list[float | None]


class Calibration(Record):
    """Calibration of both models; `error` is the expected calibration error over 15 bins."""

    old: ReliabilityBins
    new: ReliabilityBins


class HubValues(Record):
    """Hubness of one direction; see `everclip.diagnosis.neighbours.Hubness`."""

    k: int
    skewness: float
    never: float
    largest: float


class HubPair(Record):
    """Hubness of both models; `direction` names queries and items."""

    direction: Literal["text to image", "image to text"]
    old: HubValues
    new: HubValues


class SpaceValue(Record):
    """A metric of the embedding space; `old` is `None` for a comparison of the two models."""

    name: str
    label: str
    old: float | None
    new: float | None


class QueryChange(Record):
    """A text whose results changed: the positions of its best images for both models."""

    text: str
    kept: float
    old: list[int]
    new: list[int]


class Queries(Record):
    """How the best images of text queries changed.

    Attributes:
        k: results per query.
        count: number of queries.
        kept: mean share of results that both models find.
        first_changed: share of queries with another first result.
        most_changed: the queries with the fewest common results.
    """

    k: int
    count: int
    kept: float
    first_changed: float
    most_changed: list[QueryChange]


class SetDiagnosis(Record):
    """One evaluation set, answered by both models. Parts that do not apply to its kind are `None` or empty."""

    name: str
    kind: Kind
    role: Role
    score: SetPair
    flips: list[FlipCounts]
    classes: list[PartChange] = Field(default_factory=list)
    groups: dict[str, list[PartChange]] = Field(default_factory=dict)
    lost: list[FlippedImage] = Field(default_factory=list)
    gained: list[FlippedImage] = Field(default_factory=list)
    calibration: Calibration | None = None
    hubs: list[HubPair] = Field(default_factory=list)
    queries: Queries | None = None
    space: list[SpaceValue] = Field(default_factory=list)
    rotations: dict[str, list[int]] = Field(default_factory=dict)


class Verdict(Record):
    """Whether the update is safe: what the old model knew loses at most `tolerance`, judged by intervals.

    Attributes:
        state: `safe`, `unsafe`, `unclear` (the interval allows both), `unmeasured` (no kept set), or `unchanged` (the
            models give the same answers).
        sentence: the same in words, with the reason.
        tolerance: the largest loss that counts as safe.
        kept: the mean score on the kept sets.
        new: the mean score on the new sets.
        worst: the kept set with the largest loss.
        more_items: how many times as many items would decide; `None` if it is decided.
    """

    state: State
    sentence: str
    tolerance: float
    kept: SetPair | None = None
    new: SetPair | None = None
    worst: str | None = None
    more_items: float | None = None


class Diagnosis(Record):
    """Two models side by side.

    Attributes:
        old, new: their names.
        towers: fingerprints of both towers of both models.
        data: what they were measured on.
        verdict: whether the update is safe.
        numbers: the named numbers that `--fail-if` takes.
        sets: one entry per evaluation set.
        blocks: CKA of each transformer block of both towers, first block first.
        over_time: static against dated sets, if a stream in time was measured.
        notes: what is to be said about data and models.
        encoded: images that were encoded, of both models; others were in a cache.
        seconds: the time it took.
    """

    old: str
    new: str
    towers: dict[str, dict[str, str]]
    data: list[str]
    confidence: float
    verdict: Verdict
    numbers: dict[str, float]
    sets: list[SetDiagnosis]
    blocks: dict[str, list[float | None]]
    over_time: OverTime | None
    notes: list[str]
    encoded: int
    seconds: float
