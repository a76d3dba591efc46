"""Grow modules inside a CLIP, remove them, or merge them into its weights; usable without a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from everclip.errors import ConfigError
from everclip.models.clip import Clip
from everclip.models.modules.base import Context
from everclip.models.modules.kinds import KINDS
from everclip.models.modules.settings import ModuleSettings, module_settings
from everclip.models.modules.towers import tower_of


@dataclass(frozen=True)
class Grown:
    """The result of one call of `insert`.

    Attributes:
        name: the kind, such as `lora`.
        settings: its complete settings.
        parameters: names of the new parameters in the model.
    """

    name: str
    settings: ModuleSettings
    parameters: tuple[str, ...]


def insert(
    clip: Clip,
    name: str,
    settings: ModuleSettings | Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    tokenise: Callable[[list[str]], torch.Tensor] | None = None,
) -> Grown:
    """Grow a module inside open_clip's `CLIP` or `CustomTextCLIP`, in place.

    Args:
        clip: the model; its parameters keep their values, but LoRA renames the weights that it adapts
            (`x.parametrizations.weight.original`, see `plain_name`).
        name: `lora`, `adapter`, `prompt`, or `experts` with an `ExpertsSettings`.
        settings: as in the slot `trainable`; `None` = the defaults.
        seed: decides initial values.
        tokenise: texts to token ids, for prompts that are initialised from words.

    Returns:
        Kind, settings and new parameters.

    Raises:
        ConfigError: if the settings do not fit, or modules cannot grow in a tower.

    Example:
        >>> grown = insert(clip, "lora", {"rank": 4, "targets": ["q", "v"], "tower": "image"})
    """
    if not isinstance(settings, ModuleSettings):
        settings = module_settings(name, dict(settings or {}))
    # May fail: check all towers before the first change.
    towers = {side: tower_of(clip, side) for side in settings.towers}
    context = Context(seed, tokenise, towers)
    before = grown_parameters(clip)
    for tower in towers.values():
        KINDS[name].insert(tower, settings, context)
    return Grown(name, settings, tuple(n for n in grown_parameters(clip) if n not in before))


def remove(clip: Clip, name: str | None = None) -> None:
    """Remove grown modules (all, or those of one kind); the model is then as it was before them."""
    for kind in KINDS if name is None else (name,):
        KINDS[kind].remove(clip)


def grown(clip: Clip) -> dict[str, int]:
    """Return the number of modules of each kind in a model, without kinds that it does not have."""
    modules = list(clip.modules())
    counts = {name: sum(isinstance(m, kind.module) for m in modules) for name, kind in KINDS.items()}
    return {name: count for name, count in counts.items() if count}


def changed_at_start(clip: Clip) -> list[str]:
    """Return the kinds of modules in a model that change its outputs before anything is learned."""
    return [name for name in grown(clip) if not KINDS[name].identity]


def grown_parameters(clip: Clip) -> dict[str, str]:
    """Return the kind of every parameter of a grown module, by name."""
    kinds: dict[str, str] = {}
    for kind, entry in KINDS.items():
        for path, module in clip.named_modules():
            if isinstance(module, entry.module):
                kinds |= {f"{path}.{name}": kind for name, _ in module.named_parameters()}
    return kinds


def extra_cost(clip: Clip) -> str:
    """Describe the cost of grown modules per image beyond the model itself; `none` if they merge into it."""
    costs = [KINDS[name].cost(clip) for name in grown(clip)]
    return "; ".join(text for text in costs if text) or "none"


def mergeable(clip: Clip) -> bool:
    """Return whether every grown module can be merged into the model's own weights."""
    return all(KINDS[name].merge is not None for name in grown(clip))


def merge_into(clip: Clip) -> None:
    """Merge grown modules into the model's own weights, in place; its outputs stay the same, bit for bit.

    Raises:
        ConfigError: if a module cannot be merged (adapters, prompts).
    """
    counts = grown(clip)
    unmergeable = [f"{count} x {name}" for name, count in counts.items() if KINDS[name].merge is None]
    if unmergeable:
        raise ConfigError(
            f"the model holds {', '.join(unmergeable)}, which cannot be merged into its weights; only LoRA can."
        )
    for name in counts:
        merge = KINDS[name].merge
        assert merge is not None
        merge(clip)
