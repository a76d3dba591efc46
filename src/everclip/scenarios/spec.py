"""The YAML form of a scenario, validated. A benchmark and a user's own stream are the same document."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from everclip.config import Frozen, Template
from everclip.data.spec import DataSpec
from everclip.errors import did_you_mean

Where = dict[str, Any]
"""Column -> value, list of values, or `{from: a, to: b}` (both inclusive, either may be absent)."""

METRICS = (
    "accuracy",
    "top5",
    "mean_class_accuracy",
    "ece",
    "text_to_image_median_rank",
    "image_to_text_median_rank",
    "text_to_image_map",
    "image_to_text_map",
)
"""What a headline may name, beside Recall@k: `mean_r1`, `text_to_image_r5`, `image_to_text_r10`..."""


class SplitSpec(Frozen):
    """What is held out. `test` is a share (by hash of the id), or `column` names one that marks test rows.

    `validation` is the share of the training rows that is carved off by hash, of every task and of the base alike.
    """

    test: float | None = Field(None, gt=0, lt=1)
    column: str | None = None
    validation: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_rule(self) -> SplitSpec:
        if (self.test is None) == (self.column is None):
            raise ValueError(
                "set either split.test (a share) or split.column (a column that marks test rows)"
            )
        return self


class GroupSpec(Frozen):
    """Rows by condition: what was known before, or one task."""

    name: str
    where: Where = Field(default_factory=dict)


class RetentionSpec(Frozen):
    """An evaluation set that is never trained on: it shows what zero-shot ability is lost."""

    name: str
    kind: Literal["classification", "retrieval"] = "classification"
    where: Where = Field(default_factory=dict)
    templates: tuple[Template, ...] = ("{}",)


class ProtocolSpec(Frozen):
    """See `everclip.contracts.EvalProtocol`."""

    name: str
    space: Literal["own", "seen", "all"] = "own"
    known_task: bool = False
    unseen: Literal["own", "skip"] = "skip"


class HeadlineSpec(Frozen):
    """Which protocol and metric the score matrix and everything derived from it use."""

    protocol: str
    metric: str

    @field_validator("metric")
    @classmethod
    def _is_measured(cls, value: str) -> str:
        if re.fullmatch(r"(mean|text_to_image|image_to_text)_r[1-9]\d*", value) or value in METRICS:
            return value
        # A metric that no set has would quietly be replaced by each set's own.
        raise ValueError(f"no metric is called {value!r}.{did_you_mean(value, ('mean_r1', *METRICS))}")


class ScenarioSpec(Frozen):
    """A stream of tasks, its evaluation sets and protocols.

    `kind` decides how the rows become tasks: `time` by ranges of the column `time` (or any `where`), `classes` by
    groups of classes, `domains` by the values of a column, `single` takes all rows as one task.
    """

    name: str
    version: int = Field(ge=1)
    summary: str
    title: str = ""
    kind: Literal["time", "classes", "domains", "single"]
    data: DataSpec
    split: SplitSpec
    evaluate_where: Where = Field(default_factory=dict)
    tasks: tuple[GroupSpec, ...] = ()
    column: str | None = Field(None, description="domains: the column whose values are the domains")
    order: tuple[str, ...] | Literal["given", "sorted", "seed"] = "given"
    per_task: int | None = Field(None, ge=1, description="classes: new classes per task")
    first_task: int | None = Field(None, ge=1, description="classes: classes of the first task")
    order_seed: int = 0
    class_templates: tuple[Template, ...] = ("{}",)
    base: GroupSpec | None = None
    retention: tuple[RetentionSpec, ...] = ()
    protocols: tuple[ProtocolSpec, ...] = (ProtocolSpec(name="own"),)
    headline: HeadlineSpec

    @model_validator(mode="after")
    def _fits(self) -> ScenarioSpec:
        names = [protocol.name for protocol in self.protocols]
        if len(set(names)) < len(names):
            raise ValueError(f"protocols need different names (found {', '.join(names)})")
        if self.headline.protocol not in names:
            raise ValueError(f"headline.protocol {self.headline.protocol!r} is none of {', '.join(names)}")
        if self.kind == "time" and not self.tasks:
            raise ValueError("a scenario of kind `time` needs `tasks` (name and where)")
        if self.kind == "domains" and not self.column:
            raise ValueError("a scenario of kind `domains` needs `column`")
        if self.kind == "classes" and not self.per_task:
            raise ValueError("a scenario of kind `classes` needs `per_task`")
        return self
