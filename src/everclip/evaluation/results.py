"""The typed result of a run: `results.json`, which reports and comparisons read. This module needs no torch.

Everything in it is a pure function of configuration, data and seed, except the fields `cost` and `provenance`.
Undefined numbers are null, never NaN or 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from everclip.errors import DataError

SCHEMA_VERSION = 1
FILE = "results.json"


class Part(BaseModel):
    """Base of all parts of a result."""

    # NaN is written as it is, so that `Results.write` notices it.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Score(Part):
    """One measured number: `value` in its own unit (shares in [0, 1]), with its confidence interval.

    `n` is the number of queries behind it; `low` and `high` are null if no interval is defined.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0

    @field_validator("value", "low", "high")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError("a result is a finite number or null")
        return value


class Column(Part):
    """An evaluation set."""

    name: str
    kind: Literal["classification", "retrieval", "pairs", "multi-image"]
    group: Literal["task", "part", "known", "everything", "retention"]
    task: int | None
    samples: int
    classes: int | None = None


class TaskInfo(Part):
    """A task of the stream."""

    index: int
    name: str
    samples: int
    validation_samples: int = 0
    classes: int | None = None
    language: str | None = None
    time: str | None = None


class Experts(Part):
    """How often the experts of a mixture were chosen: `counts[place][expert]`, over images and slots."""

    places: list[str]
    counts: list[list[int]]


class Row(Part):
    """One moment of evaluation.

    `index` 0 is before training; `task` is the index of the task just learned (null for row 0 and for a method that
    learns everything at once). Scores are `scores[column][protocol][metric]`. `step` and `samples` count from the start
    of the run. `ambiguous[column]` counts items whose two best scores differ by less than 1e-5. For methods that route
    images, `routes[column][route]` counts the images and `experts[column]` the choices of experts. `rotations[side]`
    counts images and texts by the angle that their embeddings moved since the row before, in bins of 5 degrees. In a
    stream that is seen once, `at` says what the row is: one of those `every` n samples, the end of a `part`, or both;
    `samples` counts those of the stream, not those of steps. `thresholds[column][task]` is the similarity above which a
    question about several images is answered with yes, as the development part of its task fitted it.
    """

    index: int
    task: int | None
    label: str
    step: int
    samples: int
    scores: dict[str, dict[str, dict[str, Score]]]
    per_class: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    representation: dict[str, float | None] = Field(default_factory=dict)
    rotations: dict[str, list[int]] = Field(default_factory=dict)
    ambiguous: dict[str, int] = Field(default_factory=dict)
    routes: dict[str, dict[str, int]] = Field(default_factory=dict)
    experts: dict[str, Experts] = Field(default_factory=dict)
    notes: dict[str, Any] = Field(default_factory=dict)
    at: list[Literal["every", "part"]] = Field(default_factory=list)
    thresholds: dict[str, dict[str, float]] = Field(default_factory=dict)


class Online(Part):
    """A stream that was seen once.

    `borders` says whether the method knew where a part begins. `steps_per_sample` is the number of gradient steps so
    far over the number of samples seen; each sample was in `steps_per_batch` of them.
    """

    samples: int
    parts: int
    every: int | None
    borders: bool
    batch_size: int
    steps_per_batch: int
    steps: int
    steps_per_sample: float | None


class Matrix(Part):
    """The headline score matrix: `values[row][column]` of one metric under one protocol; null means no such cell."""

    protocol: str
    metric: str
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]


class Answer(Part):
    """The model's answers to one example at one row: the best answers with their cosines, best first.

    `rank` is the place of the true answer among all that were offered, 1 for the best; `None` in older runs.
    """

    row: int
    answers: list[tuple[str, float]]
    correct: bool
    rank: int | None = None


class Example(Part):
    """One evaluation image and the answers to it at every row. `picture` is a path inside the run folder."""

    column: str
    id: str
    picture: str
    truth: str
    answers: list[Answer]


ON_DATA = frozenset({"guessed", "data", "quarantine", "same names"})
"""The kinds of events that a user answers by mending data; nobody mends those that come with the package."""


class Event(Part):
    """An event that a reader of the numbers must know: a fallback, a stop, a changed environment."""

    kind: str
    message: str
    row: int | None = None


class Results(Part):
    """The whole result of one run: method x scenario x backbone x seed."""

    schema_version: int = SCHEMA_VERSION
    status: Literal["running", "finished", "stopped"]
    benchmark: str
    title: str
    summary: str
    method: dict[str, Any]
    backbone: dict[str, Any]
    seed: int
    protocols: list[dict[str, Any]]
    headline: dict[str, str]
    tasks: list[TaskInfo]
    columns: list[Column]
    rows: list[Row]
    matrix: Matrix
    together: Matrix | None = Field(
        None,
        description="scores on old, new and everything among the names of all sets; every image counts once",
    )
    metrics: dict[str, float | None]
    examples: list[Example] = Field(default_factory=list)
    events: list[Event] = Field(default_factory=list)
    cost: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    online: Online | None = Field(
        None, description="of a stream that is seen once; then `tasks` are the stretches between its rows"
    )

    def write(self, folder: Path) -> None:
        """Write `results.json` atomically: a reader sees the old or the new file, never a part of one.

        Raises:
            ValueError: if a number is not finite; undefined numbers are null.
        """
        from everclip.files import write_text_atomic

        text = self.model_dump_json(indent=1)  # ten times as fast as `json` with an indent
        if "NaN" in text or "Infinity" in text:
            # `json` knows whether that is a number, which it refuses, or a name.
            text = json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False)
        write_text_atomic(folder / FILE, text + "\n")

    @classmethod
    def read(cls, folder: Path | str) -> Results:
        """Read the result of a run folder (or a results file).

        Raises:
            DataError: if there is none, or it does not match the schema; names the field.
        """
        path = Path(folder)
        path = path if path.suffix == ".json" else path / FILE
        if not path.is_file():
            raise DataError(
                f"{path}: there is no result. A run folder contains {FILE} as soon as its first row is measured."
            )
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a result of schema version {SCHEMA_VERSION}: {error}") from error

    def score(self, row: int, column: str, protocol: str, metric: str) -> Score | None:
        """Return one score; `None` if there is no such cell."""
        return self.rows[row].scores.get(column, {}).get(protocol, {}).get(metric)

    def without_timing(self) -> dict[str, Any]:
        """Return everything that must be equal in an interrupted and an uninterrupted run."""
        document: Mapping[str, Any] = self.model_dump(mode="json")
        return {key: value for key, value in document.items() if key not in ("cost", "provenance", "events")}


def json_schema() -> dict[str, Any]:
    """Return the published JSON schema of `results.json`, with the meaning of every registered metric."""
    from everclip.metrics import metrics

    document = Results.model_json_schema()
    number = document["properties"]["metrics"]["additionalProperties"]
    document["properties"]["metrics"]["properties"] = {
        name: {**number, "description": f"{entry.meaning} {entry.formula}".strip()}
        for name, entry in metrics("stream").items()
    }
    return document
