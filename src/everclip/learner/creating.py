"""A learner from names: a backbone, a preset and what is set differently."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

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
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.overrides import settings_document
from everclip.registry import method_entry

if TYPE_CHECKING:
    from everclip.learner.core import Learner


def create(
    kind: type[Learner],
    backbone: str | PathLike[str] | Mapping[str, Any],
    method: str,
    training: Mapping[str, Any] | None,
    seed: int,
    settings: Mapping[str, Any],
) -> Learner:
    """See `everclip.Learner.create`."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"seed: expected a whole number of at least 0, found {seed!r}.")
    if training is not None and not isinstance(training, Mapping):
        raise ConfigError(f"training: expected settings such as {{'epochs': 5}}, found {training!r}.")
    entry = method_entry(str(method))
    changed = {"name": entry.name, "settings": merge(entry.settings, settings_document(settings))}
    chosen = validated(MethodConfig, changed, "method")
    defaults = merge_training({"epochs": 5}, entry.training)
    config = validated(
        TrainingConfig, merge_training(defaults, settings_document(training or {})), "training"
    )
    named = backbone if isinstance(backbone, Mapping) else {"name": backbone}
    clip = load_backbone(validated(BackboneConfig, named, "backbone"), seed)
    learner = kind(build_method(chosen, clip, seed), config, seed)
    guard = validated(GuardConfig, entry.guard, "guard")
    if guard.max_drop is not None:  # with nothing to watch yet, which it says when it learns
        learner.watch((), guard)
    return learner
