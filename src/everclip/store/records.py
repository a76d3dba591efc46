"""What a store writes down: its settings, its versions, and the result of their gates."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 1

GateState = Literal["pass", "fail", "cannot tell", "not measured"]


class Record(BaseModel):
    """A part of a store's documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GateLimits(Record):
    """The conditions that an update must pass; `None` turns one off. Shares are in [0, 1].

    Attributes:
        retention: the largest loss of the mean score on probes and on held-out data of earlier updates.
        gain: the least gain of the mean score on held-out new data.
        negative_flips: the largest share of known items that were right and become wrong.
        pair_angle: the largest mean change, in degrees, of the angle between an image and its text.
        latency: the largest factor on the time of encoding an image.
        size: the largest factor on the number of parameters.
    """

    retention: float | None = Field(0.01, ge=0, le=1)
    gain: float | None = Field(0.0, ge=-1, le=1)
    negative_flips: float | None = Field(0.1, ge=0, le=1)
    pair_angle: float | None = Field(None, ge=0, le=180)
    latency: float | None = Field(1.2, gt=0)
    size: float | None = Field(1.2, gt=0)


class GivenToUpdate(Record):
    """The settings that `everclip update` takes as key=value."""

    method: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


class Given(GivenToUpdate):
    """The settings that `everclip init` takes as key=value."""

    backbone: dict[str, Any] = Field(default_factory=dict)
    gates: GateLimits = GateLimits()
    seed: int = Field(0, ge=0)


class Settings(Record):
    """The settings of a store, fixed when it is made.

    Attributes:
        origin: the model it was made from, for people.
        method: the preset that updates learn with.
        method_settings, training: settings that differ from the preset's.
        probes: names of the probe suites; their rows are in `probes/`.
        gates: the conditions of an update.
        seed: enters every random draw.
        files: path below the store -> SHA-256, of the first model and the probes; empty if an earlier release made it.
    """

    format: int = FORMAT
    origin: str
    created: str
    method: str
    method_settings: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    probes: list[str] = Field(default_factory=list)
    gates: GateLimits = GateLimits()
    seed: int = 0
    files: dict[str, str] = Field(default_factory=dict)


class Learning(Record):
    """How one update learns, as far as it differs from the settings of its store.

    Attributes:
        method: the preset; `None`: that of the store.
        method_settings: settings that differ from the preset's; with the store's preset, also from the store's.
        training: training settings that differ from the store's.
    """

    method: str | None = None
    method_settings: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


class Gate(Record):
    """One gate of an update: what was measured, its interval, the limit, and what follows."""

    name: str
    state: GateState
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    reason: str


class Learned(Record):
    """The data of an update.

    Attributes:
        name: of the data.
        rows, held_out: rows to learn from, and rows that are only measured.
        fingerprint: of all rows.
    """

    name: str
    rows: int
    held_out: int
    fingerprint: str


class Version(Record):
    """One version of the model.

    Attributes:
        id: `v0001`, `v0002`...
        parent: the version that it was learned from; `None` for the first.
        state: `accepted` (passed its gates, or the first one) or `rejected`; a rejected one can be promoted.
        method: the preset that it learned with.
        learning: how it learned, if that differs from the settings of the store.
        training: the budget, the batch size and the rate of the update, wherever they were set.
        tensors: name -> content, of everything that the learner needs.
        learner: content of the rest of its state.
        files: path below the version's folder -> SHA-256.
        data: what it learned.
        share: how far the weights went from the parent's (0) to the learned ones (1).
        gates: the result of each gate.
        numbers: the numbers of its diagnosis.
        towers: fingerprint of each tower: an index of another fingerprint is of another space.
        seconds: what the update took.
    """

    format: int = FORMAT
    id: str
    parent: str | None
    created: str
    state: Literal["accepted", "rejected"]
    method: str
    learning: Learning | None = None
    training: dict[str, float] = Field(default_factory=dict)
    tensors: dict[str, str]
    learner: str
    files: dict[str, str]
    data: Learned | None = None
    share: float = 1.0
    gates: list[Gate] = Field(default_factory=list)
    numbers: dict[str, float] = Field(default_factory=dict)
    towers: dict[str, str] = Field(default_factory=dict)
    seconds: float = 0.0


class Current(Record):
    """The version that serves, and those that served before it, newest last."""

    version: str
    before: list[str] = Field(default_factory=list)
