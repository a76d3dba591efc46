"""Configuration of a run: YAML, `key=value` overrides, benchmark and preset defaults, resolved to one document.

Precedence, weakest first: defaults (`everclip.schema`), the benchmark's `training` and `guard`, those of the method
preset (with what it says of that benchmark) and its `settings`, the user's YAML file, the `key=value` arguments.
No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from everclip import registry
from everclip.errors import ConfigError, did_you_mean
from everclip.schema import (
    BUDGET_KEYS,
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
    Template,
    TrainingConfig,
    validated,
)

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
    "overrides_document",
    "parse_override",
    "resolve_config",
    "validated",
]


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
    """`merge` for training settings: what replaces a setting inherits nothing of it.

    Naming one kind of budget drops the others, and steps behind them; naming a kind of augmentation drops the one
    before, with its strengths.
    """
    replaced = any(top.get(key) is not None for key in BUDGET_KEYS)
    dropped = (*BUDGET_KEYS, "extra_steps") if replaced else ()
    augment = top.get("augment")
    if isinstance(augment, Mapping) and "kind" in augment:
        dropped = (*dropped, "augment")
    return merge({k: v for k, v in base.items() if k not in dropped}, top)


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
    training = merge_training(training, preset.per_benchmark.get(entry.name, {}))
    document["training"] = merge_training(training, user.get("training", {}))
    document["guard"] = merge(merge(defaults.get("guard", {}), preset.guard), user.get("guard", {}))
    document["scenario"] = merge(scenario, user.get("scenario", {}))
    document["benchmark"] = _tag(tag, scenario, document["scenario"])
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(preset.name).name)
    document.setdefault("output", f"runs/{entry.name}-{plain}-s{document.get('seed', 0)}")
    return validated(RunConfig, document, "")


PLACES = ("root", "places", "file")
"""Keys of a scenario that say where data lie, not which."""


def _tag(tag: str, declared: Mapping[str, Any], used: Mapping[str, Any]) -> str:
    """Return what results call a benchmark: a declared variant by its settings, else changed where it differs."""
    keys = [key for key in {**declared, **used} if key not in PLACES and declared.get(key) != used.get(key)]
    if not keys or tag.endswith(CHANGED):
        return tag
    if all(key in declared.get("variants", ()) and not isinstance(used[key], list) for key in keys):
        return f"{tag} ({' '.join(f'{key}={used[key]}' for key in keys)})"
    return tag + CHANGED


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
