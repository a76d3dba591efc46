"""The YAML form of a scenario, validated. A benchmark and a user's own stream are the same document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from everclip.config import Frozen
from everclip.data.reading.spec import DataSpec
from everclip.errors import did_you_mean
from everclip.metrics import AUTO, Kind, cut, find
from everclip.scenarios.online_spec import OnlineSpec
from everclip.scenarios.short_forms import expand_short_forms
from everclip.templates import Template

Where = dict[str, Any]
"""Column -> value, list of values, or `{from: a, to: b}` (both inclusive, either may be absent)."""


def _as_name(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a class called 10, not in quotes
    if not isinstance(value, str):
        raise ValueError(f"YAML reads this name as {value!r}; put it in quotes")
    return value


Name = Annotated[str, BeforeValidator(_as_name)]
"""The name or key of a class, a domain or a source; YAML reads some names as numbers."""

Clock = Literal["written", "utc", "unix", "unix-ms"]
"""`written`: an offset such as +02:00 is ignored; `utc`: it is taken off; `unix`: seconds since 1970, `unix-ms`:
milliseconds."""

Measured = Literal["classification", "retrieval"]
"""How an evaluation set is scored: by the class of an image, or by finding captions by image and images by caption."""

Kept = Literal["classification", "retrieval", "pairs", "multi-image"]
"""How a set of the retention suite is scored: as other sets are, by pairs of images (MMVP-VLM, Winoground), or by
questions about several images (MIRB)."""

ORDERS = ("given", "sorted", "seed", "published")
"""Values of `order` other than a list; `published` is the class order on the card of a `catalog:NAME`."""

MEASURED: tuple[Kind, ...] = ("classification", "retrieval")
"""Kinds of metrics that a headline may name."""


class SplitSpec(Frozen):
    """What is held out.

    Attributes:
        test: a share, by hash of the image's id, so that added data never move a sample to another side.
        by: a column (a URL, a user...) whose equal values stay on one side, also if their images differ: with `test`,
            its hash decides in place of the image; rows whose value is measured, in whatever set, are removed from
            training. Rows without a value go by their image.
        seed: with `test`: another seed holds out other rows.
        column: a column that marks rows: `test` (or true) for testing, `val`, `validation` or `dev` for validation,
            anything else for training.
        measure: which marked rows are measured: `test`; or, for data without test rows, `validation` (and `test`, if
            there are any); then `validation` is carved off the training rows.
        validation: the share of the training rows that is carved off by hash, for every task and the base;
            not used where the column marks validation rows.
        shared: what to do with training images that are also in a marked or separate test side: `stop`, or `remove`
            them from training. With `test`, a share by hash, they are always removed.
    """

    test: float | None = Field(None, gt=0, lt=1)
    by: str | None = None
    seed: int = 0
    column: str | None = None
    measure: Literal["test", "validation"] = "test"
    validation: float = Field(0.1, ge=0, lt=1)
    shared: Literal["stop", "remove"] = "stop"

    @model_validator(mode="after")
    def _one_rule(self) -> SplitSpec:
        if self.test is not None and self.column is not None:
            raise ValueError(_ONE_RULE)
        if self.measure == "validation" and self.column is None:
            raise ValueError("split.measure: validation needs split.column, which marks the validation rows")
        if self.seed and self.test is None:
            raise ValueError("split.seed: only a split by hash has it; set split.test (a share)")
        return self

    @property
    def has_rule(self) -> bool:
        """Whether the split says which rows are for testing."""
        return self.test is not None or self.column is not None


_ONE_RULE = "set either split.test (a share) or split.column (a column that marks test rows)"


class GroupSpec(Frozen):
    """Rows by condition: one task."""

    name: str
    where: Where = Field(default_factory=dict)


class BaseSpec(GroupSpec):
    """The base: rows of the stream's data by condition, or data of its own.

    Attributes:
        data: a block of its own; `where` then chooses among its rows.
        split: of that data; default: the scenario's.
        kind: how it is measured; default: as the tasks are, or by its columns if it has data of its own.
        templates: texts around class names; default: the scenario's.
    """

    data: DataSpec | None = None
    split: SplitSpec | None = None
    kind: Measured | None = None
    templates: tuple[Template, ...] | None = None


class AlsoSpec(Frozen):
    """Further test data of a source: one more column of its task.

    Attributes:
        data: the data; all of it is measured, and none is trained on.
        kind: how it is measured; another way than the source itself.
        where: chooses among the rows.
        templates: texts around class names; default: those of a `catalog:NAME`'s card, or of a file beside the
            data, else the scenario's.
    """

    data: DataSpec
    kind: Measured
    where: Where = Field(default_factory=dict)
    templates: tuple[Template, ...] | None = None


class SourceSpec(GroupSpec):
    """One source of a stream of sources: a task with names, templates and a split of its own.

    Attributes:
        data: its training data, or all of it.
        kind: how it is measured; default: retrieval if there are captions, else classification.
        templates: texts around class names; default: those of the data set's card for `catalog:NAME`, else the
            scenario's.
        train_template: the text around class names that training uses; default: the first of `templates`.
        split: default: the scenario's.
        test: separate test data; then no rows of `data` are held out for testing.
        val: separate validation data; then nothing is carved.
        without: names of classes that are left out.
        also: further test data, as columns named `NAME (KIND)`; metrics of the score matrix ignore them, the report
            has the averages of TiC-CLIP over them.
        measure: additional columns of the result: some of its test rows by condition, scored among all its classes;
            metrics of the score matrix ignore them.
    """

    data: DataSpec
    kind: Measured | None = None
    templates: tuple[Template, ...] | None = None
    train_template: Template | None = None
    split: SplitSpec | None = None
    test: DataSpec | None = None
    val: DataSpec | None = None
    also: tuple[AlsoSpec, ...] = ()
    measure: tuple[GroupSpec, ...] = ()
    without: tuple[Name, ...] = ()


class RetentionSpec(Frozen):
    """An evaluation set that is never trained on: it shows the loss of zero-shot ability.

    Attributes:
        where: chooses test rows of the stream's data, or rows of `data`.
        data: data of its own; all of it is measured except the validation part.
        templates: texts around class names; default: those of the data set's card for `catalog:NAME`, else none. For
            pairs one text around the captions; default: what their rows say.
        class_column: the column whose values are the classes; default: the classes of the data.
        val: separate validation data.
        validation: without `val`, the share of `data` by hash that becomes the set's validation twin and is not
            measured. Sets without `data` take their twin from the stream's validation rows. Pairs and questions about
            several images have no twin: all of them are measured.
    """

    name: str
    kind: Kept = "classification"
    where: Where = Field(default_factory=dict)
    templates: tuple[Template, ...] | None = None
    class_column: str | None = None
    data: DataSpec | None = None
    val: DataSpec | None = None
    validation: float = Field(0.3, ge=0, lt=1)

    @model_validator(mode="after")
    def _val_needs_data(self) -> RetentionSpec:
        if self.val is not None and self.data is None:
            raise ValueError(
                "`val` needs `data`: a set without `data` uses the validation rows of the stream"
            )
        if self.class_column is not None and self.kind != "classification":
            raise ValueError(f"`class_column` needs kind `classification`; {self.kind} has captions")
        if self.val is not None and self.kind in ("pairs", "multi-image"):
            sets = "pairs" if self.kind == "pairs" else "multi-image sets"
            raise ValueError(f"`val`: {sets} have no validation twin; leave it out")
        return self


class ReferenceSpec(Frozen):
    """Unlabelled data for distillation (ZSCL) and selectors; they belong to no task.

    Attributes:
        images: images; their captions and classes are ignored.
        images_where: chooses among the rows of that data block, for example `{held_out: false}`.
        texts: captions (or class names) of a data block, or a `.txt` file with a text per line.
        texts_where: chooses among the rows of that data block, for example `{language: en}`.
    """

    images: DataSpec | None = None
    images_where: Where = Field(default_factory=dict)
    texts: DataSpec | None = None
    texts_where: Where = Field(default_factory=dict)


class ProtocolSpec(Frozen):
    """See `everclip.contracts.EvalProtocol`."""

    name: str
    space: Literal["own", "seen", "all", "learned"] = "own"
    known_task: bool = False
    unseen: Literal["own", "skip"] = "skip"
    same_texts: Literal["one", "apart"] = "one"


class HeadlineSpec(Frozen):
    """The protocol and metric of the score matrix and its metrics."""

    protocol: str
    metric: str = AUTO

    @field_validator("metric")
    @classmethod
    def _is_measured(cls, value: str) -> str:
        if value == AUTO or any(find(value, kind) for kind in MEASURED):
            return value
        known = [entry.name for kind in MEASURED for entry, _ in cut(kind, (1,))]
        # An unknown metric would silently be replaced by each set's default.
        raise ValueError(f"no metric is called {value!r}.{did_you_mean(value, (AUTO, *known))}")


class ScenarioSpec(Frozen):
    """A stream of tasks, its evaluation sets and protocols.

    `kind` decides how the rows become tasks: `time` by periods or ranges of the column `time` (or any `where`),
    `classes` by groups of classes, `domains` by the values of a column, `languages` by language (only languages that
    were learned are scored, by default), `single` takes all rows as one task, `sources` makes a task of each data
    block, `online` is a stream that is seen once (`OnlineSpec`).
    """

    name: str
    version: int = Field(ge=1)
    summary: str
    title: str = ""
    protocol: str | None = Field(
        None,
        description="short form: mtil, odcl-til, odcl-cil, x-tail, cil or cll (everclip.scenarios.short_forms)",
    )
    kind: Literal["time", "classes", "domains", "languages", "single", "sources", "online"]
    data: DataSpec | None = None
    test: DataSpec | None = Field(
        None, description="separate test data; then no rows of `data` are held out for testing"
    )
    sources: tuple[SourceSpec, ...] = ()
    merge_classes: bool = Field(
        True, description="sources: classes of equal name are one class; false: they stay separate classes"
    )
    merge_templates: Literal["first", "joined"] = Field(
        "first",
        description="sources: templates of a class that several sources share: those of the first, or of all",
    )
    templates_of: dict[str, str] = Field(
        default_factory=dict, description="sources: shared class name -> the source whose templates it takes"
    )
    split: SplitSpec | None = None
    root: str | None = Field(None, description="folder of the data sets that `catalog:NAME` names")
    places: dict[str, str] = Field(
        default_factory=dict, description="`catalog:NAME` -> a folder, a table or hub:OWNER/NAME"
    )
    counts: Literal["required", "noted"] | None = Field(
        None, description="whether an incomplete `catalog:NAME` is refused (default) or noted"
    )
    shots: int | None = Field(None, ge=1, description="training images per class, chosen by hash")
    shots_seed: int = Field(0, description="another seed chooses other `shots`")
    evaluate_where: Where = Field(default_factory=dict)
    evaluate_as: Measured | None = Field(None, description="default: by captions if there are any")
    evaluate_also: Measured | None = Field(
        None,
        description="measure the base and each task a second time in this way; metrics of the score matrix ignore it",
    )
    tasks: tuple[GroupSpec, ...] = ()
    every: Literal["year", "quarter", "month", "week", "day", "value"] | None = Field(
        None, description="time: a task per period of the column, instead of listed tasks"
    )
    clock: Clock = Field(
        "written",
        description="time: how the column is read. `written`: an offset such as +02:00 is ignored; `utc`: it is taken "
        "off; `unix`, `unix-ms`: (milli)seconds since 1970, in UTC",
    )
    parts: int | None = Field(
        None,
        ge=2,
        description="time: so many tasks with about equally many training rows, in the order of the column; rows of "
        "one time stay together",
    )
    column: str | None = Field(
        None,
        description="domains: the column whose values are the domains; time: default `time`; languages: `language`",
    )
    source_language: str = Field(
        "en",
        description="languages: the language that captions are translations of; in a drawn order it is first",
    )
    one_test: bool = Field(
        False, description="measure all test rows as one evaluation set, not one set per task"
    )
    everything: bool = Field(
        False,
        description="add the evaluation set `everything`: the test rows of all tasks and of the base",
    )
    order: tuple[Name, ...] | str = "given"
    orders: dict[str, tuple[Name, ...]] = Field(
        default_factory=dict, description="lists that `order` can name"
    )
    per_task: int | None = Field(None, ge=1, description="classes: new classes per task")
    first_task: int | None = Field(None, ge=1, description="classes: classes of the first task")
    groups: tuple[tuple[Name, ...], ...] = Field((), description="classes: the classes of every task, listed")
    order_seed: int = 0
    online: OnlineSpec | None = Field(None, description="online: how the stream is drawn and measured")
    class_templates: tuple[Template, ...] = ("{}",)
    train_template: Template | None = Field(None, description="default: the first of the templates")
    base: BaseSpec | None = None
    retention: tuple[RetentionSpec, ...] = ()
    reference: ReferenceSpec | None = None
    protocols: tuple[ProtocolSpec, ...] = (ProtocolSpec(name="own"),)
    headline: HeadlineSpec
    variants: tuple[str, ...] = Field(
        (),
        description="keys whose change makes a variant of the benchmark, named in results, instead of `(changed)`",
    )
    file: str | None = Field(
        None, description="the YAML file it was read from; set by the reader of the file"
    )

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        return expand_short_forms(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits(self) -> ScenarioSpec:
        names = [protocol.name for protocol in self.protocols]
        if len(set(names)) < len(names):
            raise ValueError(f"protocols need different names (found {', '.join(names)})")
        if self.headline.protocol not in names:
            raise ValueError(f"headline.protocol {self.headline.protocol!r} is none of {', '.join(names)}")
        known = (*ORDERS, *self.orders)
        if isinstance(self.order, str) and self.order not in known:
            raise ValueError(
                f"order: expected a list or one of {', '.join(known)}; found {self.order!r}."
                f"{did_you_mean(self.order, known)}"
            )
        problem = _missing_data(self) if self.kind == "sources" else _missing_setting(self)
        if problem:
            raise ValueError(problem)
        return self


def _missing_data(spec: ScenarioSpec) -> str | None:
    """Return what is wrong with a stream of sources, or `None`."""
    if not spec.sources:
        return "a scenario of kind `sources` needs `sources` (a list of name and data)"
    if spec.data is not None:
        return "a scenario of kind `sources` has no `data` of its own; put it into `sources`"
    if spec.test is not None:
        return "a scenario of kind `sources` has no `test` of its own; put it into `sources`"
    names = [source.name for source in spec.sources]
    if len(set(names)) < len(names):
        return f"sources need different names (found {', '.join(names)})"
    for index, source in enumerate(spec.sources):
        rule = source.split or spec.split
        if source.test is None and (rule is None or not rule.has_rule) and not source.data.is_catalog:
            return f"sources.{index} ({source.name}): {_ONE_RULE}, or give `test`, separate test data"
    if spec.evaluate_also is not None:
        return "`evaluate_also` needs a common table; a scenario of kind `sources` has none"
    if spec.base is not None and spec.base.data is None:
        return "base.data: missing; a scenario of kind `sources` has no common table for `where`"
    for index, part in enumerate(spec.retention):
        if part.data is None:
            return f"retention.{index}.data: missing; kind `sources` has no common table for `where`"
    return None


def _missing_setting(spec: ScenarioSpec) -> str | None:
    """Return what is wrong with another kind of scenario, or `None`."""
    if spec.data is None:
        return "data: missing; it has no default"
    if spec.sources:
        return f"`sources` needs kind `sources`, not with `{spec.kind}`"
    if (spec.split is None or not spec.split.has_rule) and not spec.data.is_catalog and spec.test is None:
        return f"{_ONE_RULE}, or give `test`, separate test data"
    if spec.one_test and spec.kind not in ("time", "domains"):
        return f"`one_test` needs kind `time` or `domains`, not with `{spec.kind}`"
    if spec.kind == "languages" and spec.evaluate_as == "classification":
        return "`languages` are measured by retrieval; leave `evaluate_as` out"
    if spec.kind == "time" and [bool(spec.tasks), bool(spec.every), bool(spec.parts)].count(True) != 1:
        return (
            "a scenario of kind `time` needs one of `tasks` (name and where), `every` (year, month...) and `parts` (a "
            "number)"
        )
    if spec.kind == "domains" and not spec.column:
        return "a scenario of kind `domains` needs `column`"
    if spec.kind == "classes" and bool(spec.per_task) == bool(spec.groups):
        return (
            "a scenario of kind `classes` needs either `per_task` (a number) or `groups` (lists of classes)"
        )
    for key in ("every", "parts", "clock"):
        if spec.kind != "time" and getattr(spec, key) not in (None, "written"):
            return f"`{key}` needs kind `time`, not with `{spec.kind}`"
    return _online_problem(spec)


def _online_problem(spec: ScenarioSpec) -> str | None:
    """Return what is wrong with the settings of a stream that is seen once, or `None`."""
    if spec.kind != "online":
        return None if spec.online is None else f"`online` needs kind `online`, not with `{spec.kind}`"
    for key in ("order", "shots", "evaluate_as", "evaluate_also", "everything", "base"):
        if getattr(spec, key) != type(spec).model_fields[key].default:
            return f"a stream of kind `online` takes no `{key}`; its order comes from `order_seed`"
    return None
