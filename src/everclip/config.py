"""Configuration of a run: YAML, `key=value` overrides, benchmark and preset defaults, resolved to one document.

Precedence, weakest first: defaults (`everclip.schema`); the benchmark's `training` and `guard`; `training`, `guard` and
`settings` of the method preset, with its `per_benchmark` settings; the user's YAML file; the `key=value` arguments.
Does not import torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any

from everclip import overrides, registry
from everclip.errors import ConfigError
from everclip.schema import (
    BUDGET_KEYS,
    SHORTHAND,
    AugmentConfig,
    BackboneConfig,
    CaptionConfig,
    CheckpointConfig,
    EvaluationConfig,
    Frozen,
    GuardConfig,
    MethodConfig,
    PreprocessConfig,
    RunConfig,
    TrainingConfig,
    unknown_key,
    validated,
)
from everclip.templates import Template

__all__ = [
    "BUDGET_KEYS",
    "CHANGED",
    "SECTIONS",
    "AugmentConfig",
    "BackboneConfig",
    "CaptionConfig",
    "CheckpointConfig",
    "EvaluationConfig",
    "Frozen",
    "GuardConfig",
    "MethodConfig",
    "PreprocessConfig",
    "RunConfig",
    "Template",
    "TrainingConfig",
    "merge",
    "merge_training",
    "parse_override",
    "resolve_config",
    "validated",
]


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `a.b=value`, and read the value by the type of the setting (`everclip.overrides`).

    Raises:
        ConfigError: if there is no `=`, or the value cannot be read.
    """
    return overrides.parse_override(text, overrides.types_of(RunConfig))


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `top`, merged mapping by mapping."""
    merged = deepcopy(dict(base))
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def merge_training(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`merge` for training settings: some settings replace others entirely.

    A budget replaces any other kind of budget, with its `extra_steps`. A kind of augmentation replaces the other
    augmentation, with its strengths.
    """
    replaced = any(top.get(key) is not None for key in BUDGET_KEYS)
    dropped = (*BUDGET_KEYS, "extra_steps") if replaced else ()
    augment = top.get("augment")
    if isinstance(augment, Mapping) and "kind" in augment:
        dropped = (*dropped, "augment")
    return merge({k: v for k, v in base.items() if k not in dropped}, top)


CHANGED = " (changed)"
"""Marks a benchmark whose scenario was changed: its results are not comparable with the benchmark."""

SECTIONS = ("training", "backbone", "method", "evaluation", "guard", "checkpoint")
"""Sections for which a scenario document may give defaults."""


def _expand(document: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `method: finetune` into `method: {name: finetune}`, and settings beside the name into `settings`."""
    expanded = dict(document)
    for key, inner in SHORTHAND.items():
        if isinstance(expanded.get(key), str):
            expanded[key] = {inner: expanded[key]}
    chosen = expanded.get("method")
    if isinstance(chosen, Mapping):
        settings = dict(chosen.get("settings", {}))
        settings.update({k: v for k, v in chosen.items() if k not in ("name", "settings")})
        expanded["method"] = {**({"name": chosen["name"]} if "name" in chosen else {}), "settings": settings}
    return expanded


def _user_document(target: str) -> tuple[dict[str, Any], registry.BenchmarkEntry]:
    """Read a benchmark, a scenario file, or a run configuration that names either."""
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
    if isinstance(scenario, Mapping) and "kind" in scenario:  # the resolved configuration of a run
        document.pop("scenario")
        tag = name.removesuffix(CHANGED)
        return document, registry.BenchmarkEntry(
            str(scenario.get("name")), int(scenario.get("version", 1)), "", {**scenario, "tag": name}, tag
        )
    if name.endswith((".yaml", ".yml")) and not Path(name).is_absolute():
        name = str(Path(target).parent / name)
    return document, registry.benchmark_entry(name)


def evaluation_of(config: EvaluationConfig | Mapping[str, Any] | None) -> EvaluationConfig:
    """Return evaluation settings, validated if they are a mapping.

    Raises:
        ConfigError: for another type, or invalid settings.
    """
    if isinstance(config, EvaluationConfig):
        return config
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(
            f"config: expected settings such as {{'top_k': [1]}}, found {type(config).__name__}."
        )
    return validated(EvaluationConfig, config or {}, "evaluation")


def resolve_config(
    target: str | PathLike[str], texts: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> RunConfig:
    """Resolve a benchmark name or a YAML file, plus `key=value` overrides, to a complete configuration.

    Args:
        target: `emoji-time`, `emoji-time@1`, `my-scenario.yaml` or `my-run.yaml`.
        texts: `seed=1`, `training.steps=50`, `method=replay`, `method.replay.size=100`...
        settings: the same as Python values, `{"seed": 1, "training": {"steps": 50}}`; they take precedence over
            `texts`.

    Raises:
        ConfigError: names the key, what was found and what was expected.
    """
    if not isinstance(target, str | PathLike) or not isinstance(os.fspath(target), str):
        raise ConfigError(f"expected a benchmark or a YAML file, found {type(target).__name__}.")
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"settings: expected a mapping of keys to values, found {type(settings).__name__}.")
    from_file, entry = _user_document(os.fspath(target))
    arguments = overrides.overrides_document(texts, overrides.types_of(RunConfig))
    arguments = merge(arguments, overrides.settings_document(settings or {}))
    for part in (from_file, arguments):
        _check_sections(part)
    user = _overlay(_expand(from_file), _expand(arguments))
    scenario = dict(entry.document)
    tag = str(scenario.pop("tag", entry.tag))
    defaults: dict[str, Any] = {key: scenario.pop(key) for key in SECTIONS if key in scenario}
    _check_sections(defaults)
    document = _overlay(_expand(defaults), user)
    method = document.get("method", {})
    preset = registry.method_entry(str(method.get("name", "finetune")))
    document["method"] = {"name": preset.name, "settings": merge(preset.settings, method.get("settings", {}))}
    training = merge_training(defaults.get("training", {}), preset.training)
    training = merge_training(training, preset.per_benchmark.get(entry.name, {}))
    document["training"] = merge_training(training, user.get("training", {}))
    document["guard"] = merge(merge(defaults.get("guard", {}), preset.guard), user.get("guard", {}))
    document["scenario"] = merge(scenario, user.get("scenario", {}))
    document["benchmark"] = _tag(tag, scenario, document["scenario"])
    method_name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(preset.name).name)
    document.setdefault("output", f"runs/{entry.name}-{method_name}-s{document.get('seed', 0)}")
    return validated(RunConfig, document, "")


LOCATION_KEYS = ("root", "places", "file")
"""Keys of a scenario that say where its data are; they do not change the benchmark."""


def _tag(tag: str, declared: Mapping[str, Any], used: Mapping[str, Any]) -> str:
    """Return the name of a benchmark in results: with the settings of a declared variant, or `(changed)`."""
    keys = [
        key for key in {**declared, **used} if key not in LOCATION_KEYS and declared.get(key) != used.get(key)
    ]
    if not keys or tag.endswith(CHANGED):
        return tag
    if all(key in declared.get("variants", ()) and not isinstance(used[key], list) for key in keys):
        return f"{tag} ({' '.join(f'{key}={used[key]}' for key in keys)})"
    return tag + CHANGED


def _overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two configurations; another method or backbone inherits no settings from the old one."""
    base = dict(base)
    for key in SHORTHAND:
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
            below = f"{key}.{next(iter(value))}" if isinstance(value, Mapping) and value else str(key)
            raise ConfigError(f"{key}: unknown key.{unknown_key(below, sorted(known))}")
        named = key in SHORTHAND and isinstance(value, str)
        if key in (*SECTIONS, "scenario") and not named and not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected settings below it, found {value!r}.")
        inner = value.get("settings", {}) if key == "method" and isinstance(value, Mapping) else {}
        if not isinstance(inner, Mapping):
            raise ConfigError(f"method.settings: expected settings below it, found {inner!r}.")
