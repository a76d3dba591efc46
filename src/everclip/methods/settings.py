"""Settings of methods: the base class, the common settings of trained methods, and the four slots. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from everclip.config import Frozen
from everclip.errors import did_you_mean
from everclip.models.modules.settings import MODULES, ModuleSettings, check_range, module_settings

PARTS = (
    "image",
    "text",
    "image-embeddings",
    "text-embeddings",
    "image-projection",
    "text-projection",
    "image-layernorm",
    "text-layernorm",
    "image-batchnorm",
    "image-bias",
    "text-bias",
    "logit-scale",
    "logit-bias",
)
"""The parts of a backbone that `trainable` may name, besides block ranges and grown modules."""

BLOCKS = ("image-blocks", "text-blocks")
"""Parts that take a range: `image-blocks:8-11`, `text-blocks:last2`."""


def normal_part(entry: Any) -> str | dict[str, Any]:
    """Return an entry of `trainable` in normal form: `image-bias`, `image-blocks:8-11`, `{lora: {rank: 8, ...}}`.

    Raises:
        ValueError: if it names neither a part nor a module.
        ConfigError: if a module's settings do not fit.
    """
    if isinstance(entry, Mapping):
        if len(entry) != 1:
            raise ValueError(f"expected one name per entry, such as {{lora: {{rank: 8}}}}; found {entry!r}")
        name, value = next(iter(entry.items()))
    else:
        name, value = entry, None
    if not isinstance(name, str):
        raise ValueError(f"expected the name of a part, found {name!r}")
    if name in MODULES:
        return {name: module_settings(name, value).model_dump(mode="json")}
    if name in BLOCKS and isinstance(value, str | int):
        name, value = f"{name}:{value}", None
    head, colon, blocks = str(name).partition(":")
    if value is not None:
        raise ValueError(f"{head!r} takes no settings; only {', '.join(MODULES)} do")
    if head in BLOCKS:
        if not colon:
            raise ValueError(f"{head!r} needs a range: {head}:8-11, {head}:last2, {head}:first3 or {head}:0")
        return f"{head}:{check_range(blocks)}"
    if name not in PARTS:
        known = [*PARTS, *(f"{part}:last1" for part in BLOCKS), *MODULES]
        raise ValueError(f"{name!r} is not a part of a backbone.{did_you_mean(str(name), known)}")
    return str(name)


def names_of(trainable: tuple[str | dict[str, Any], ...]) -> tuple[str, ...]:
    """Return the names of the parts and modules in entries of `trainable`."""
    return tuple(e if isinstance(e, str) else next(iter(e)) for e in trainable)


def modules_of(trainable: tuple[str | dict[str, Any], ...]) -> tuple[tuple[str, ModuleSettings], ...]:
    """Return the modules that entries of `trainable` grow, with their complete settings."""
    entries = [next(iter(e.items())) for e in trainable if isinstance(e, dict)]
    return tuple((name, module_settings(name, settings)) for name, settings in entries)


TASK_START_PENALTIES = ("lwf", "lwf-vr", "mod-x", "oewc", "weight-constraint", "zscl")
"""Penalties that refer to the model at the start of the task, unless their `reference` says otherwise."""


class ReplaySettings(Frozen):
    """The samples to store, and their share of each batch.

    Attributes:
        kind: `reservoir` stores a uniform sample of all data so far, `balanced` the same number per class (per task if
            samples have no class), `herding` the same number per class, chosen to represent the class best under the
            model that has just learned it (iCaRL), `exponential` half of the buffer for the newest earlier task, half
            of the rest for the one before, and so on, `equal` the same number per earlier task (both TiC-CLIP; a
            stored sample that was left out never comes back), `all` everything, `none` nothing.
        size: largest number of stored samples (not for `all`).
        times: for `exponential` and `equal`: the size as a multiple of the training rows of the task that was learned
            last, in place of `size` (TiC-CLIP's buffer of B steps).
        per: the groups that get equal shares in `balanced` and `herding`: `class`, `task`, or `auto`: classes if a
            task names them.
        candidates: largest number of samples of a task that `herding` encodes and chooses from, selected by hash.
        use: `train` mixes stored samples into each batch, `distil` gives them only to the penalties (in a separate
            stream, `memory`), `both` does both.
        share: share of each batch that comes from the buffer; `null` = in proportion to the sizes. With `exponential`,
            `equal`, and with `all` and `null`, the share of every earlier task is exact, too.
        base: whether to offer the backbone's own training data to the buffer as well, before the first task.
        beside: whether replayed samples are added to the task's own, which are then seen as often as without replay.
            This multiplies the steps by 1 / (1 - share), except for a budget in steps.
    """

    kind: Literal["none", "reservoir", "balanced", "herding", "exponential", "equal", "all"] = "none"
    size: int = Field(500, ge=1)
    times: float | None = Field(None, gt=0, allow_inf_nan=False)
    per: Literal["auto", "class", "task"] = "auto"
    candidates: int = Field(30_000, ge=1)
    use: Literal["train", "distil", "both"] = "train"
    share: float | None = Field(0.5, gt=0, lt=1)
    base: bool = False
    beside: bool = False

    @model_validator(mode="after")
    def _times_of_a_step(self) -> ReplaySettings:
        if self.times is not None and not self.by_task:
            raise ValueError(
                f"replay.times: only `exponential` and `equal` count in tasks, not {self.kind!r}; set "
                "replay.times=null (and replay.size)"
            )
        return self

    @property
    def by_task(self) -> bool:
        """Whether the buffer keeps a stated part of each earlier task."""
        return self.kind in ("exponential", "equal")

    @property
    def exact(self) -> bool:
        """Whether each earlier task has its own exact share of a batch."""
        return self.by_task or (self.kind == "all" and self.share is None)


class MergeSettings(Frozen):
    """How to merge weights when a task ends.

    Attributes:
        kind: `wise-ft` interpolates between a reference and the trained weights (arXiv 2109.01903), `running-mean`
            averages the start and snapshots every `every` steps (ZSCL's weight ensemble).
        alpha: weight of the trained model in [0, 1], or `sweep` to choose it from `grid` on validation data.
        grid: candidates of the sweep.
        reference: the other model of the interpolation: at the `task-start`, or the `initial` one.
        every: steps between snapshots of the running mean; below 1 a share of the task's steps.
        start: share of the task's steps before the first snapshot (0 includes the model at the start).
        wise_we: weight of the running mean at each snapshot; the rest is the weight of the model at the task's start
            ("wise_we" of ZSCL's code, 0.98 there). 1 is the plain mean.
    """

    kind: Literal["none", "wise-ft", "running-mean"] = "none"
    alpha: float | Literal["sweep"] = 0.5
    grid: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    reference: Literal["task-start", "initial"] = "task-start"
    every: int | float = Field(10, gt=0, allow_inf_nan=False)
    start: float = Field(0.0, ge=0, lt=1)
    wise_we: float = Field(1.0, ge=0, le=1)

    @field_validator("every")
    @classmethod
    def _every_is_steps_or_a_share(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"every: {value:g} is neither a whole number of steps nor a share below 1")
        return value

    @field_validator("grid")
    @classmethod
    def _grid_in_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 <= alpha <= 1 for alpha in value):
            raise ValueError("the grid of a sweep holds at least one alpha, each in [0, 1]")
        return value

    @field_validator("alpha")
    @classmethod
    def _alpha_in_range(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 <= value <= 1:
            raise ValueError("alpha is a share of the trained model: a number in [0, 1], or `sweep`")
        return value


class TaskTraining(Frozen):
    """Training settings of one task that differ from the run's `training`.

    Attributes:
        lr: learning rate in place of `training.lr` (`lr_scale` also applies to it).
        epochs, steps: budget in place of the run's; at most one of them.
    """

    lr: float | None = Field(None, gt=0, allow_inf_nan=False)
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False)
    steps: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_budget(self) -> TaskTraining:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("set `epochs` or `steps`, not both")
        return self


class MethodSettings(Frozen):
    """The base of all settings, empty. The model of a method adds the settings that the method uses."""


class TrainedSettings(MethodSettings):
    """The common settings of methods that train by gradient.

    Attributes:
        lr_scale: factor on `training.lr`: with it, a preset can learn more slowly without fixing the rate.
        per_task: name of a task, in any case -> its own training settings (published settings differ per data set).
    """

    lr_scale: float = Field(1.0, gt=0, le=10)
    per_task: dict[str, TaskTraining] = Field(default_factory=dict)


class SlotsWithoutReplay(TrainedSettings):
    """The loss that a method trains, and the slots `trainable`, `penalties` and `merge`.

    Attributes:
        loss: `labels` (cross entropy against class texts), `captions` (contrastive), or `auto`: labels if a task names
            its classes.
        label_smoothing: for the loss `labels`.
        contrast: for the loss `captions`: `softmax` (CLIP's), or `sigmoid` (SigLIP's; needs a model with a logit bias).
        trainable: the parts of the backbone that train (`image`, `text-layernorm`, `image-blocks:last2`...), and
            modules to grow inside it (`lora`, `{adapter: {width: 32}}`, `prompt`).
        penalties: name of a loss -> its settings (`weight` and others); see `everclip.methods.penalties`.
        merge: how to merge weights when a task ends.
    """

    loss: Literal["auto", "labels", "captions"] = "auto"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    contrast: Literal["softmax", "sigmoid"] = "softmax"
    trainable: tuple[str | dict[str, Any], ...] = ("image", "text", "logit-scale")
    penalties: dict[str, dict[str, Any]] = Field(default_factory=dict)
    merge: MergeSettings = MergeSettings()

    @field_validator("trainable", mode="before")
    @classmethod
    def _known_parts(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError("expected a list of parts, such as [image-layernorm, {lora: {rank: 8}}]")
        return tuple(normal_part(entry) for entry in value)

    @model_validator(mode="after")
    def _bias_has_a_gradient(self) -> SlotsWithoutReplay:
        if "logit-bias" in self.parts and (self.contrast, self.loss) != ("sigmoid", "captions"):
            raise ValueError(
                "trainable: `logit-bias` learns only from the sigmoid loss (softmax ignores a constant); set "
                "method.loss=captions and method.contrast=sigmoid, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _memory_exists(self) -> SlotsWithoutReplay:
        needs_memory = any(penalty.get("images") == "memory" for penalty in self.penalties.values())
        if needs_memory and (self.replaying.kind == "none" or self.replaying.use == "train"):
            raise ValueError(
                "penalties: `images: memory` uses stored samples, but there are none; set replay.kind, and "
                "replay.use=distil or both"
            )
        return self

    @property
    def replaying(self) -> ReplaySettings:
        """The settings of replay; without the slot, no replay."""
        return ReplaySettings()

    @property
    def starting(self) -> str:
        """The weights that a task begins with; without the setting, those of the previous task."""
        return "previous"

    @property
    def budgets(self) -> str:
        """How the budget grows from task to task; without the setting, not at all."""
        return "constant"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of parts and modules in `trainable`."""
        return names_of(self.trainable)

    @property
    def modules(self) -> tuple[tuple[str, ModuleSettings], ...]:
        """The modules that `trainable` grows, with their complete settings."""
        return modules_of(self.trainable)


class SlotSettings(SlotsWithoutReplay):
    """All four slots, the model that a task begins with, and how its budget grows.

    Attributes:
        replay: the samples to store, and their share of each batch.
        start: the weights that a task begins with: those that the `previous` task ended with, the `initial` ones, or
            `random` ones (drawn anew for each task; both towers must train).
        budget: `constant` spends the run's budget on every task, `cumulative` t times as much on the t-th (TiC-CLIP's
            oracle).
    """

    replay: ReplaySettings = ReplaySettings()
    start: Literal["previous", "initial", "random"] = "previous"
    budget: Literal["constant", "cumulative"] = "constant"

    @model_validator(mode="after")
    def _random_towers_train(self) -> SlotSettings:
        if self.start == "random" and (self.modules or not {"image", "text"} <= set(self.parts)):
            raise ValueError(
                "start: `random` needs both towers to train, without grown modules: trainable=[image, text, "
                "logit-scale]; frozen random weights would never learn"
            )
        return self

    @model_validator(mode="after")
    def _nothing_refers_to_a_discarded_model(self) -> SlotSettings:
        merging = self.merge
        referring = [
            f"penalties.{name}"
            for name, given in self.penalties.items()
            if name in TASK_START_PENALTIES and given.get("reference", "task-start") == "task-start"
        ]
        if merging.kind == "wise-ft" and merging.reference == "task-start":
            referring.append("merge")
        if self.start != "previous" and referring:
            raise ValueError(
                f"start: with `{self.start}`, the model at a task's start is not the one that was learned, so "
                f"{referring[0]} would hold to the wrong model; set its `reference: initial`, or leave one of them out"
            )
        return self

    @property
    def starting(self) -> str:
        """The weights that a task begins with."""
        return self.start

    @property
    def budgets(self) -> str:
        """How the budget grows."""
        return self.budget

    @property
    def replaying(self) -> ReplaySettings:
        """The settings of replay."""
        return self.replay
