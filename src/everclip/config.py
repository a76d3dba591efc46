"""Configuration of a run: frozen models, read from YAML, `key=value` overrides, benchmark and preset defaults.

Precedence, weakest first: defaults here, the benchmark's `training` and `guard`, those of the method preset and
its `settings`, the user's YAML file, the `key=value` arguments. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from everclip import registry
from everclip.errors import ConfigError, did_you_mean

BUDGET_KEYS = ("steps", "epochs", "samples")
"""Three ways to say how long one task trains; setting one replaces the others."""


class Frozen(BaseModel):
    """Base of all settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


Positive = Annotated[float, Field(gt=0)]


class PreprocessConfig(Frozen):
    """How pictures become pixels, where it must differ from what the weights' configuration says (or does not say)."""

    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None


class BackboneConfig(Frozen):
    """Which CLIP to start from (docs/own-model.md).

    Attributes:
        name: `builtin:tiny`, `hf-hub:ORG/NAME[@REVISION]`, a folder in open_clip's layout, or an architecture of
            open_clip's.
        weights: a tag or a file for an architecture, a file of the folder for a folder; `random` starts from scratch
            (seeded by the run).
        patch_dropout: share of image patches that training drops (FLIP, arXiv 2212.00794), else the model's own.
        image_size: side in pixels other than the weights' own; position embeddings are interpolated.
        force_quick_gelu: the activation to use where name and weights disagree on it.
        preprocess: what to use where the weights' own preprocessing is not known, or wrong.
    """

    name: str = Field("builtin:tiny", min_length=1)
    weights: str | None = None
    patch_dropout: float | None = Field(None, ge=0, lt=1)
    image_size: int | None = Field(None, ge=1)
    force_quick_gelu: bool | None = None
    preprocess: PreprocessConfig | None = None


class MethodConfig(Frozen):
    """A preset by name, and what is set differently."""

    name: str = "finetune"
    settings: dict[str, Any] = Field(default_factory=dict)


class AugmentConfig(Frozen):
    """Augmentation of training images; every draw is keyed by (seed, task, step, sample id).

    Attributes:
        crop_min: smallest share of the area a random crop keeps.
        ratio: a crop's aspect ratio lies within `[1/ratio, ratio]`.
        flip: probability of a horizontal flip.
        rotate: largest rotation in degrees either way.
        colour: strength of brightness, contrast and saturation jitter (0.4 = factors in [0.6, 1.4]).
        hue: largest hue shift as a fraction of the colour circle.
        grey: probability of dropping colour.
        zoom_out: probability of pasting the picture smaller on its ground, down to half its side.
        blur: probability of a Gaussian blur of up to 3 % of the side (outlines and texture go, shapes stay).
    """

    crop_min: float = Field(0.9, gt=0, le=1)
    ratio: float = Field(1.1, ge=1)
    flip: float = Field(0.0, ge=0, le=1)
    rotate: float = Field(0.0, ge=0, le=180)
    colour: float = Field(0.0, ge=0, le=1)
    hue: float = Field(0.0, ge=0, le=0.5)
    grey: float = Field(0.0, ge=0, le=1)
    zoom_out: float = Field(0.0, ge=0, le=1)
    blur: float = Field(0.0, ge=0, le=1)


def _one_place(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} must hold {{}} exactly once")
    return template


Template = Annotated[str, AfterValidator(_one_place)]
"""A text around a name: `{}` stands for it."""


class CaptionConfig(Frozen):
    """How a training caption is drawn from a sample's name and keywords (keyed like augmentation).

    Attributes:
        templates: texts around the caption, `{}` stands for it.
        template_probability: how often a template other than plain is used.
        keyword_probability: how often keywords stand in for the caption.
        keywords: how many keywords at the most.
    """

    templates: tuple[Template, ...] = ()
    template_probability: float = Field(0.0, ge=0, le=1)
    keyword_probability: float = Field(0.0, ge=0, le=1)
    keywords: int = Field(3, ge=1)


class TrainingConfig(Frozen):
    """How one task is trained; `steps`, `epochs` or `samples` is the budget per task (exactly one)."""

    steps: int | None = Field(None, ge=0)
    epochs: float | None = Field(None, ge=0, allow_inf_nan=False)
    samples: int | None = Field(None, ge=0)
    batch_size: int = Field(64, ge=1)
    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-4, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate per block downwards, in each tower"
    )
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    schedule: Literal["cosine", "constant", "constant-cooldown"] = "cosine"
    warmup: int | float = Field(0.1, ge=0, description="steps, or a share of all steps when below 1")
    cooldown: int | float = Field(0.2, ge=0, description="steps, or a share of all steps when below 1")
    clip_norm: float | None = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1)
    workers: int = Field(1, ge=0, description="threads that prepare the next batches")
    loss_limit: float = Field(1e3, gt=0, description="a loss above this counts as exploded")
    augment: AugmentConfig | None = Field(
        AugmentConfig(), description="`none`: the backbone's own evaluation transform, the same at every step"
    )
    captions: CaptionConfig = CaptionConfig()
    cache: bool = Field(
        True, description="encode a frozen tower once where its input is the same at every step"
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
        return self


class EvaluationConfig(Frozen):
    """How rows are measured."""

    batch_size: int = Field(256, ge=1)
    confidence: float = Field(0.95, gt=0, lt=1)
    top_k: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 5, 10), min_length=1)
    representation_samples: int = Field(2000, ge=2)
    examples: int = Field(4, ge=0, description="pictures per evaluation set kept for the report")
    cache: str | None = Field(None, description="folder that shares encoded features between runs")


class CheckpointConfig(Frozen):
    """When checkpoints are written and how many stay.

    The interval grows when writing is slow, so that it costs at most `max_share` of the run's time, unless
    `every_steps` fixes it.
    """

    every_seconds: float = Field(60.0, gt=0)
    every_steps: int | None = Field(None, ge=1)
    max_share: float = Field(0.02, gt=0, le=1)
    keep: int = Field(2, ge=1)
    keep_rows: bool = Field(False, description="also keep the model of every row, for rows to come of new sets")
    disk_budget_mb: float | None = Field(None, gt=0)


class GuardConfig(Frozen):
    """The retention guard: watches validation twins of the retention suite while training goes on.

    Attributes:
        max_drop: percentage points that any watched set may fall below its value before the run; `null` = off.
        every: steps between looks, or a share of the task's steps when below 1; the end of a task is always looked at.
        action: `stop` goes back to the last good weights and ends the task's training; `step-back` goes back as far
            as needed on the line to the last good weights, and trains on.
        sets: names of the sets that are watched; none = all of the retention suite.
    """

    max_drop: float | None = Field(None, gt=0, le=100)
    every: int | float = Field(0.1, gt=0)
    action: Literal["stop", "step-back"] = "step-back"
    sets: tuple[str, ...] = ()


class RunConfig(Frozen):
    """Everything that decides a run's result, and where it is written."""

    benchmark: str
    scenario: dict[str, Any]
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

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result; another process may change the rest freely."""
        document = self.model_dump(mode="json")
        for key in ("output", "checkpoint", "trackers", "report"):
            document.pop(key)
        document["training"].pop("workers")
        document["scenario"].pop("file", None)
        document["evaluation"].pop("cache")
        return document


_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], data: Mapping[str, Any], where: str) -> _Model:
    """Build `model` from `data`; errors name the key, what was found and what was expected.

    Raises:
        ConfigError: listing every problem, with "did you mean" for unknown keys.
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
        return f"{name}: unknown key.{did_you_mean(path[-1], fields)}"
    if item["type"] == "missing":
        return f"{name}: missing; it has no default."
    found = item.get("input")
    shown = f" (found {found!r})" if path and not isinstance(found, dict) else ""
    return f"{name or 'config'}: {item['msg']}{shown}"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        info = model.model_fields.get(part)
        given = info.annotation if info else None
        # A part that may be absent (`AugmentConfig | None`) has the fields of what it is when present.
        for inner in get_args(given) or (given,):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
    return list(model.model_fields)


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `a.b=value`; the value is read as YAML, so `1e-4`, `true`, `[1, 2]` and plain words work.

    Raises:
        ConfigError: if there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text!r}: expected key=value, for example seed=1 or training.steps=200.")
    try:
        parsed = yaml.safe_load(value) if value != "" else None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{key}: cannot read {value[:80]!r} as a value ({error}).") from error
    # YAML 1.1 reads 1e-4 as a word because it lacks the point; people write learning rates that way.
    if isinstance(parsed, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", parsed):
        parsed = float(parsed)
    return key.strip().split("."), parsed


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `top` laid over it, mapping by mapping."""
    merged = deepcopy(dict(base))
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def merge_training(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`merge` for training settings: naming one kind of budget drops the others."""
    replaced = any(top.get(key) is not None for key in BUDGET_KEYS)
    return merge({k: v for k, v in base.items() if not (replaced and k in BUDGET_KEYS)}, top)


CHANGED = " (changed)"
"""Marks a benchmark whose scenario was changed: its numbers are not the benchmark's."""

SECTIONS = ("training", "backbone", "method", "evaluation", "guard")
"""What a scenario document may give defaults for."""

_SHORTHAND = {"method": "name", "backbone": "name"}


def _expand(document: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `method: finetune` into `method: {name: finetune}`, and settings beside the name into `settings`."""
    expanded = dict(document)
    for key, inner in _SHORTHAND.items():
        if isinstance(expanded.get(key), str):
            expanded[key] = {inner: expanded[key]}
    chosen = expanded.get("method")
    if isinstance(chosen, Mapping):
        settings = dict(chosen.get("settings", {}))
        settings.update({k: v for k, v in chosen.items() if k not in ("name", "settings")})
        expanded["method"] = {**({"name": chosen["name"]} if "name" in chosen else {}), "settings": settings}
    return expanded


def overrides_document(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `["a.b=1", "a.c=2"]` as `{"a": {"b": 1, "c": 2}}`; `method=NAME` and `backbone=NAME` are short forms.

    Raises:
        ConfigError: for a text without `=`, or settings below a plain value.
    """
    document: dict[str, Any] = {}
    for text in overrides:
        path, value = parse_override(text)
        if len(path) == 1 and path[0] in _SHORTHAND and isinstance(value, str):
            path = [path[0], _SHORTHAND[path[0]]]
        node = document
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{'.'.join(path)}: {part!r} was already given a plain value.")
        node[path[-1]] = value
    return document


def _user_document(target: str) -> tuple[dict[str, Any], registry.BenchmarkEntry]:
    """Read what the user named: a benchmark, a scenario file, or a run configuration that names either."""
    if not target.endswith((".yaml", ".yml")):
        return {}, registry.benchmark_entry(target)
    document = registry.read_yaml(Path(target))
    if "kind" in document:
        return {}, registry.benchmark_entry(target)
    name = document.pop("benchmark", None)
    if not isinstance(name, str):
        found = ", ".join(map(str, document)) or "nothing"
        raise ConfigError(
            f"{target}: expected the key `benchmark` (a run) or `kind` (a scenario); found {found}."
        )
    scenario = document.get("scenario")
    if isinstance(scenario, Mapping) and "kind" in scenario:  # the resolved configuration of an earlier run
        document.pop("scenario")
        tag = name.removesuffix(CHANGED)
        return document, registry.BenchmarkEntry(
            str(scenario.get("name")), int(scenario.get("version", 1)), "", {**scenario, "tag": name}, tag
        )
    if name.endswith((".yaml", ".yml")) and not Path(name).is_absolute():
        name = str(Path(target).parent / name)
    return document, registry.benchmark_entry(name)


def resolve_config(target: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Resolve a benchmark name or a YAML file, plus `key=value` overrides, to a complete configuration.

    Args:
        target: `emoji-time`, `emoji-time@1`, `my-scenario.yaml` or `my-run.yaml`.
        overrides: `seed=1`, `training.steps=50`, `method=replay`, `method.replay.size=100`...

    Raises:
        ConfigError: naming the key, what was found, what was expected.
    """
    from_file, entry = _user_document(target)
    given = overrides_document(overrides)
    for part in (from_file, given):
        _check_sections(part)
    user = _laid_over(_expand(from_file), _expand(given))
    scenario = dict(entry.document)
    tag = str(scenario.pop("tag", entry.tag))
    defaults: dict[str, Any] = {key: scenario.pop(key) for key in SECTIONS if key in scenario}
    _check_sections(defaults)
    document = _laid_over(_expand(defaults), user)
    method = document.get("method", {})
    preset = registry.method_entry(str(method.get("name", "finetune")))
    document["method"] = {"name": preset.name, "settings": merge(preset.settings, method.get("settings", {}))}
    training = merge_training(defaults.get("training", {}), preset.training)
    document["training"] = merge_training(training, user.get("training", {}))
    document["guard"] = merge(merge(defaults.get("guard", {}), preset.guard), user.get("guard", {}))
    document["scenario"] = merge(scenario, user.get("scenario", {}))
    changed = document["scenario"] != scenario and not tag.endswith(CHANGED)
    document["benchmark"] = tag + (CHANGED if changed else "")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(preset.name).name)
    document.setdefault("output", f"runs/{entry.name}-{plain}-s{document.get('seed', 0)}")
    return validated(RunConfig, document, "")


def _laid_over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one configuration over another; a newly named method or backbone inherits nothing from the old one."""
    base = dict(base)
    for key in _SHORTHAND:
        name = top.get(key, {}).get("name")
        if name is not None and name != base.get(key, {}).get("name"):
            base.pop(key, None)
    document = merge(base, top)
    if "training" in document:
        document["training"] = merge_training(base.get("training", {}), top.get("training", {}))
    return document


def _check_sections(document: Mapping[str, Any]) -> None:
    known = set(RunConfig.model_fields)
    for key, value in document.items():
        if key not in known:
            raise ConfigError(f"{key}: unknown key.{did_you_mean(key, known)}")
        named = key in _SHORTHAND and isinstance(value, str)
        if key in (*SECTIONS, "checkpoint", "scenario") and not named and not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected settings below it, found {value!r}.")
        inner = value.get("settings", {}) if key == "method" and isinstance(value, Mapping) else {}
        if not isinstance(inner, Mapping):
            raise ConfigError(f"method.settings: expected settings below it, found {inner!r}.")
