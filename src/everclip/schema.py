"""The settings of a run as frozen models; validation errors name the key. Does not import torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from everclip.errors import ConfigError
from everclip.field_types import DescribedBy, check_text, converted, field_type, models_in, not_utf8
from everclip.synonyms import hint
from everclip.templates import Template
from everclip.urls import copy_of_run, is_remote, require_no_secrets

SHORTHAND = {"method": "name", "backbone": "name"}
"""Sections that may be a text: `method: finetune` is `method: {name: finetune}`."""

BUDGET_KEYS = ("steps", "epochs", "samples", "macs")
"""The kinds of budget for one task; setting one replaces the others."""


class Frozen(BaseModel):
    """Base of all settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _convert(cls, value: Any, info: ValidationInfo) -> Any:
        """Convert a value to the field's type if its meaning is clear; the same for YAML, command line and Python."""
        field = cls.model_fields.get(info.field_name or "")
        return value if field is None else converted(value, field.annotation)


Positive = Annotated[float, Field(gt=0)]


class PreprocessConfig(Frozen):
    """How images become pixels; only what differs from the configuration of the weights, or is missing there."""

    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None


class BackboneConfig(Frozen):
    """Which CLIP to start from (docs/own-model.md).

    Attributes:
        name: `builtin:photo`, `builtin:tiny`, `hf-hub:ORG/NAME[@REVISION]`, a folder (open_clip's layout, a
            `CLIPModel`, or an export to ONNX), or an architecture of open_clip's.
        weights: a tag or a file for an architecture, a file of the folder for a folder; `random` starts from scratch
            (seeded by the run).
        key: which model of a file with several (`model_ema`); if the choice matters, an error asks for it.
        adapter: a folder with a LoRA in PEFT's layout, to be merged into the weights: written by
            `everclip export --adapter-only` or by PEFT.
        patch_dropout: share of image patches that training drops (FLIP, arXiv 2212.00794); default: that of the model.
        image_size: side in pixels, if not that of the weights; position embeddings are interpolated.
        force_quick_gelu: the activation, if name and weights disagree on it.
        preprocess: replaces the preprocessing of the weights if it is unknown or wrong.
    """

    name: str = Field("builtin:photo", min_length=1)
    weights: str | None = None
    key: str | None = Field(None, min_length=1)
    adapter: str | None = Field(None, min_length=1)
    patch_dropout: float | None = Field(None, ge=0, lt=1)
    image_size: int | None = Field(None, ge=1)
    force_quick_gelu: bool | None = None
    preprocess: PreprocessConfig | None = None


class MethodConfig(Frozen):
    """A preset by name, and changed settings."""

    name: str = "finetune"
    settings: dict[str, Any] = Field(default_factory=dict)


class AugmentConfig(Frozen):
    """Augmentation of training images; every draw is keyed by (seed, task, step, sample id).

    Attributes:
        kind: what a crop is taken from. `model-view`: from what the model sees at evaluation, after its transform fits
            the image into a square (squashed, the central square, or padded: `backbone.preprocess.resize_mode`).
            `random-resized-crop`: from the whole image, by the rules of torchvision's `RandomResizedCrop`, as in most
            published code.
        crop_min: smallest area of a crop, as a share of what it is taken from. In a `model-view` the part of a drawn
            crop that is outside is cut off: it keeps at least `min(crop_min, sqrt(crop_min / ratio))`
            (0.9 and 4/3: 82 %).
        ratio: the aspect ratio of a crop lies within `[1/ratio, ratio]`, in a `model-view` relative to the view.
            Default 1.1, and 4/3 (torchvision's) for `random-resized-crop`.
        fixed: augment each image once per task and phase, and use it at every step (few-shot MoE-Adapters as
            published), instead of anew at every step.
        flip: probability of a horizontal flip.
        rotate: largest rotation in degrees either way.
        colour: strength of brightness, contrast and saturation jitter (0.4 = factors in [0.6, 1.4]).
        hue: largest hue shift as a fraction of the colour circle.
        grey: probability of dropping colour.
        zoom_out: probability of pasting the image smaller on its background, down to half its side.
        blur: probability of a Gaussian blur of up to 3 % of the side (outlines and texture go, shapes stay).
    """

    kind: Literal["model-view", "random-resized-crop"] = "model-view"
    crop_min: float = Field(0.9, gt=0, le=1)
    ratio: float = Field(1.1, ge=1)
    fixed: bool = False
    flip: float = Field(0.0, ge=0, le=1)
    rotate: float = Field(0.0, ge=0, le=180)
    colour: float = Field(0.0, ge=0, le=1)
    hue: float = Field(0.0, ge=0, le=0.5)
    grey: float = Field(0.0, ge=0, le=1)
    zoom_out: float = Field(0.0, ge=0, le=1)
    blur: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _default_ratio(cls, data: Any) -> Any:
        published = isinstance(data, Mapping) and data.get("kind") == "random-resized-crop"
        return {"ratio": 4 / 3, **data} if published else data


class CaptionConfig(Frozen):
    """How a training caption is drawn from a sample's name and keywords (keyed like augmentation).

    Attributes:
        templates: texts around the caption, with `{}` in its place.
        template_probability: how often a template other than plain is used.
        keyword_probability: how often keywords replace the caption.
        keywords: maximum number of keywords.
    """

    templates: tuple[Template, ...] = ()
    template_probability: float = Field(0.0, ge=0, le=1)
    keyword_probability: float = Field(0.0, ge=0, le=1)
    keywords: int = Field(3, ge=1)


class TrainingConfig(Frozen):
    """How one task is trained. The budget per task is one of `steps`, `epochs`, `samples` or `macs`."""

    steps: int | None = Field(None, ge=0)
    epochs: float | None = Field(None, ge=0, allow_inf_nan=False)
    samples: int | None = Field(None, ge=0)
    macs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="multiply-accumulates of all steps of a task, those of teachers and replayed samples included",
    )
    count_macs: bool = Field(
        False, description="count the multiply-accumulates also with another budget; results state them"
    )
    extra_steps: int = Field(
        0,
        ge=0,
        description="steps after the budget, at the end of the schedule (some published code takes one)",
    )
    batch_size: int = Field(64, ge=1)
    chunk: int | None = Field(
        None,
        ge=1,
        description="largest number of samples that a tower encodes at a time, with the gradients of the whole batch: "
        "memory for a chunk and all embeddings, for one more forward pass",
    )
    steps_per_batch: int = Field(
        1, ge=1, description="steps on each batch of a stream that is seen once, each with a new augmentation"
    )
    recompute: bool = Field(
        False,
        description="activation checkpointing: keep only the input of each block of a tower, and compute the block "
        "again in the backward pass; the same gradients in less memory, for about a third more time",
    )
    memory_check: Literal["refuse", "warn", "none"] = Field(
        "refuse",
        description="what happens if a step seems to need more memory than there is: the run is refused, a note warns, "
        "or nothing is estimated",
    )
    compile: bool = Field(
        False,
        description="compile the blocks of the towers with torch.compile: faster steps after minutes of compiling; "
        "results differ by rounding",
    )
    shard: bool = Field(
        False,
        description="with several processes, each keeps a part of the weights, gradients and moments (FSDP2); for "
        "towers that do not fit one device. With one process it changes nothing",
    )
    optimiser: Literal["adamw", "adamw-8bit", "sgd"] = Field(
        "adamw",
        description="`adamw-8bit`: moments of 1 byte per value in place of 4 (needs everclip[low-memory])",
    )
    fused: bool = Field(
        False, description="update all weights in one kernel: a faster optimiser; results differ by rounding"
    )
    lr: float = Field(1e-4, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate per block, from top to bottom of each tower"
    )
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    schedule: Literal["cosine", "constant", "constant-cooldown"] = "cosine"
    warmup: int | float = Field(0.1, ge=0, description="steps, or a share of all steps when below 1")
    rewarm: bool = Field(
        True,
        description="whether every task begins with a warm-up; if not, the first task that is trained does, and with "
        "`method.start` other than `previous` every task",
    )
    carry_optimiser: bool = Field(
        False, description="whether a task begins with the optimiser's moments of the task before"
    )
    cooldown: int | float = Field(0.2, ge=0, description="steps, or a share of all steps when below 1")
    clip_norm: float | None = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="`auto`: bf16 on a GPU that supports it, else fp32; a run keeps the precision it began with",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1)
    workers: int = Field(
        1, ge=0, description="threads that prepare the next batches, in training and evaluation"
    )
    shuffle_window: int | None = Field(
        None,
        ge=1,
        description="samples that are shuffled at a time, for data that lie far away or on a slow disk; default: all",
    )
    loss_limit: float = Field(1e3, gt=0, description="a loss above this counts as exploded")
    augment: AugmentConfig | None = Field(
        AugmentConfig(), description="`none`: the backbone's own evaluation transform, the same at every step"
    )
    captions: CaptionConfig = CaptionConfig()
    cache: bool = Field(
        True, description="encode once with a frozen tower whose input is the same at every step"
    )

    @field_validator("augment", mode="before")
    @classmethod
    def _none_by_name(cls, value: Any) -> Any:
        return None if value == "none" else value

    @model_validator(mode="after")
    def _one_budget(self) -> TrainingConfig:
        given = [key for key in BUDGET_KEYS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"set exactly one of {', '.join(BUDGET_KEYS)} (found: {', '.join(given) or 'none'})"
            )
        if self.fused and self.optimiser == "adamw-8bit":
            raise ValueError("fused: adamw-8bit has a kernel of its own; leave one of them out")
        apart = [key for key in ("fused", "compile") if getattr(self, key)]
        apart += [self.optimiser] if self.optimiser == "adamw-8bit" else []
        apart += [self.precision] if self.precision == "fp16" else []
        if self.shard and apart:
            raise ValueError(f"shard: does not work with {' and '.join(apart)}; leave one of them out")
        if self.macs is not None and self.extra_steps:
            raise ValueError(
                "extra_steps: a budget in macs pays for every step, so none can be added; leave extra_steps out"
            )
        return self


class EvaluationConfig(Frozen):
    """How rows are measured."""

    batch_size: int = Field(256, ge=1)
    confidence: float = Field(0.95, gt=0, lt=1)
    top_k: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 5, 10), min_length=1)
    representation_samples: int = Field(2000, ge=2)
    examples: int = Field(4, ge=0, description="images per evaluation set that the report shows")
    cache: str | None = Field(None, description="folder that shares encoded features between runs")
    cache_gib: float = Field(
        50.0, gt=0, description="bound on that folder; the least recently used files are removed first"
    )


class CheckpointConfig(Frozen):
    """When checkpoints are written and how many are kept.

    If writing is slow, the interval grows such that writing takes at most `max_share` of the run's time, unless
    `every_steps` fixes the interval.
    """

    every_seconds: float = Field(60.0, gt=0)
    every_steps: int | None = Field(None, ge=1)
    max_share: float = Field(0.02, gt=0, le=1)
    keep: int = Field(2, ge=1)
    keep_rows: bool = Field(
        False, description="also keep the model after every row, to measure it on sets that are added later"
    )
    disk_budget_mb: float | None = Field(None, gt=0)


class GuardConfig(Frozen):
    """The retention guard: watches validation twins of the retention suite while training goes on.

    Attributes:
        max_drop: percentage points that the watched sets may fall below their values before the run; `null` = off.
        over: `worst` holds every set to the limit; `mean` holds their mean to it, which a few hundred images per set
            decide with less noise.
        every: steps between measurements, or a share of the task's steps if below 1; the end of a task is always
            measured. `null`: only after the task's merge.
        action: `stop` returns to the last good weights and ends the task's training; `step-back` moves as far as
            needed towards the last good weights, and trains on.
        sets: names of the watched sets; none = all of the retention suite.
    """

    max_drop: float | None = Field(None, gt=0, le=100)
    over: Literal["worst", "mean"] = "worst"
    every: int | float | None = Field(0.1, gt=0)
    action: Literal["stop", "step-back"] = "step-back"
    sets: tuple[str, ...] = ()


class RunConfig(Frozen):
    """The complete configuration of a run.

    `directory` is the working directory in which the run began. Relative paths of backbone, tables of features and the
    stream's file are looked for in the working directory, then there.
    """

    benchmark: str
    scenario: Annotated[dict[str, Any], DescribedBy("everclip.scenarios.spec:ScenarioSpec")]
    backbone: BackboneConfig = BackboneConfig()
    method: MethodConfig = MethodConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    trackers: tuple[str, ...] = ()
    report: bool = True
    seed: int = Field(0, ge=0)
    output: str = Field(min_length=1)
    directory: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _require_utf8(cls, value: Any) -> Any:
        check_text(value, not_utf8)
        return value

    @field_validator("output")
    @classmethod
    def _expand_home(cls, value: str) -> str:
        """Expand `~`; a shell does so only at the start of an argument. Refuse a URL with a key."""
        if not is_remote(value):
            return os.path.expanduser(value)
        try:
            require_no_secrets(value, "output")
        except ConfigError as error:
            raise PydanticCustomError(
                _SECRET, "{problem}", {"problem": str(error).removeprefix("output: ").removesuffix(".")}
            ) from error
        return value.rstrip("/")

    @property
    def folder(self) -> Path:
        """The run folder on this machine: `output` or, if that is a URL, the copy that a run works in."""
        return copy_of_run(self.output) if is_remote(self.output) else Path(self.output)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result; the others may change when a run continues."""
        document = self.model_dump(mode="json")
        for key in ("output", "checkpoint", "trackers", "report", "directory"):
            document.pop(key)
        for key in ("workers", "memory_check"):
            document["training"].pop(key)
        document["scenario"].pop("file", None)
        for key in ("cache", "cache_gib"):
            document["evaluation"].pop(key)
        return document


_SECRET = "value_with_secret"
"""The type of an error whose message does not show the value: an address may hold a key."""

_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], data: Mapping[str, Any], where: str) -> _Model:
    """Build `model` from `data`; errors name the key, what was found and what was expected.

    Raises:
        ConfigError: lists every problem, with "did you mean" for unknown keys.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        lines = [_explain(model, item, where) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def _explain(model: type[BaseModel], item: Mapping[str, Any], where: str) -> str:
    path = [str(part) for part in item["loc"]]
    name = ".".join(p for p in [where, *path] if p)
    if item["type"] == "extra_forbidden":
        fields = _fields_at(model, path[:-1])
        if not fields:
            return f"{name}: unknown key; there is nothing to set here."
        return f"{name}: unknown key.{unknown_key(name, fields)}"
    if item["type"] == "missing":
        return f"{name}: missing; it has no default."
    found = item.get("input")
    tell = path and not isinstance(found, dict) and item["type"] != _SECRET
    shown = f" (found {_short(found)})" if tell else ""
    message = item["msg"].removeprefix("Value error, ")  # pydantic's prefix for errors of our validators
    return f"{name or 'config'}: {message}{shown}"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def unknown_key(key: str, siblings: Sequence[str]) -> str:
    """Return a hint for an unknown key: a similar key, or the same setting under another section."""
    return hint(key, siblings, setting_keys(RunConfig))


def setting_keys(model: type[BaseModel], prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Yield all keys of a model, with dots."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if depth < 3:
            for inner in models_in(field_type(field)):
                yield from setting_keys(inner, f"{prefix}{name}.", depth + 1)


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        info = model.model_fields.get(part)
        annotation = info.annotation if info else None
        # An optional part (`AugmentConfig | None`) has the fields of its model.
        for inner in get_args(annotation) or (annotation,):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return list(model.model_fields)
