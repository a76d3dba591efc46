"""Build a learner from names: a backbone, a preset and changed settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from everclip.config import (
    BackboneConfig,
    GuardConfig,
    MethodConfig,
    TrainingConfig,
    merge,
    merge_training,
    validated,
)
from everclip.errors import ConfigError
from everclip.methods.base import Method
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.overrides import settings_document
from everclip.registry import method_entry


@dataclass(frozen=True)
class Parts:
    """The parts of a learner.

    Attributes:
        method: the method with its backbone.
        training: the training settings.
        guard: the preset's settings of the retention guard.
    """

    method: Method
    training: TrainingConfig
    guard: GuardConfig


def parts_of(
    backbone: str | PathLike[str] | Mapping[str, Any],
    method: str,
    training: Mapping[str, Any] | None,
    seed: int,
    settings: Mapping[str, Any],
) -> Parts:
    """Build the parts that the arguments of `everclip.Learner.create` name.

    Raises:
        ConfigError: if a name or a setting does not exist.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"seed: expected a whole number of at least 0, found {seed!r}.")
    chosen, config, guard = settings_of(method, training, settings)
    named = backbone if isinstance(backbone, Mapping) else {"name": backbone}
    clip = load_backbone(validated(BackboneConfig, named, "backbone"), seed)
    return Parts(build_method(chosen, clip, seed), config, guard)


def settings_of(
    method: str, training: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> tuple[MethodConfig, TrainingConfig, GuardConfig]:
    """Return a preset with changed settings, the settings of training, and those of the guard; loads no backbone.

    Raises:
        ConfigError: if a name or a setting does not exist.
    """
    if training is not None and not isinstance(training, Mapping):
        raise ConfigError(f"training: expected settings such as {{'epochs': 5}}, found {training!r}.")
    entry = method_entry(str(method))
    changed = {"name": entry.name, "settings": merge(entry.settings, settings_document(settings))}
    chosen = validated(MethodConfig, changed, "method")
    defaults = merge_training({"epochs": 5}, entry.training)
    config = validated(
        TrainingConfig, merge_training(defaults, settings_document(training or {})), "training"
    )
    return chosen, config, validated(GuardConfig, entry.guard, "guard")
