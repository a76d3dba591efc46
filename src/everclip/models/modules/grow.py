"""Growing modules inside a CLIP, and taking them out or merging them again; usable without a method."""

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
    """What one call of `insert` put into a model.

    Attributes:
        name: the kind, such as `lora`.
        settings: its complete settings.
        parameters: names of the new parameters, as the model calls them.
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
        clip: the model; nothing of it changes value, but LoRA renames the weights it adapts
            (`x.parametrizations.weight.original`, see `plain_name`).
        name: `lora`, `adapter`, `prompt`, or `experts` with settings of their own type.
        settings: as in the slot `trainable`; `None` = the defaults.
        seed: decides initial values.
        tokenise: texts to token ids, for prompts that start from words.

    Returns:
        What was put in.

    Raises:
        ConfigError: if the settings do not fit, or a tower is none that modules can grow in.

    Example:
        >>> grown = insert(clip, "lora", {"rank": 4, "targets": ["q", "v"], "tower": "image"})
    """
    given = settings if isinstance(settings, ModuleSettings) else module_settings(name, dict(settings or {}))
    context = Context(seed, tokenise)
    towers = [tower_of(clip, side) for side in given.towers]  # all of them, before anything is changed
    before = grown_parameters(clip)
    for tower in towers:
        KINDS[name].insert(tower, given, context)
    return Grown(name, given, tuple(n for n in grown_parameters(clip) if n not in before))


def remove(clip: Clip, name: str | None = None) -> None:
    """Take grown modules (all, or those of one kind) out of a model, which is then what it was before them."""
    for kind in KINDS if name is None else (name,):
        KINDS[kind].remove(clip)


def grown(clip: Clip) -> dict[str, int]:
    """Return how many modules of each kind a model holds; kinds that it does not hold are left out."""
    modules = list(clip.modules())
    found = {name: sum(isinstance(m, kind.module) for m in modules) for name, kind in KINDS.items()}
    return {name: count for name, count in found.items() if count}


def changed_at_start(clip: Clip) -> list[str]:
    """Return the kinds grown in a model that made it another one before anything was learned."""
    return [name for name in grown(clip) if not KINDS[name].identity]


def grown_parameters(clip: Clip) -> dict[str, str]:
    """Return the name of every parameter that was grown, and the kind of its module."""
    found: dict[str, str] = {}
    for kind, entry in KINDS.items():
        for place, module in clip.named_modules():
            if isinstance(module, entry.module):
                found |= {f"{place}.{name}": kind for name, _ in module.named_parameters()}
    return found


def extra_cost(clip: Clip) -> str:
    """Say what grown modules cost for each image beyond the model itself; `none` where they merge into it."""
    found = [KINDS[name].cost(clip) for name in grown(clip)]
    return "; ".join(text for text in found if text) or "none"


def mergeable(clip: Clip) -> bool:
    """Whether everything that was grown in a model can be put into its own weights."""
    return all(KINDS[name].merge is not None for name in grown(clip))


def merge_into(clip: Clip) -> None:
    """Put what was grown in a model into its own weights, in place; its outputs stay the same, bit for bit.

    Raises:
        ConfigError: if something was grown that no weight can hold (adapters, prompts).
    """
    held = grown(clip)
    stuck = [f"{count} x {name}" for name, count in held.items() if KINDS[name].merge is None]
    if stuck:
        raise ConfigError(
            f"the model holds {', '.join(stuck)}, which its own weights cannot take up; only LoRA merges."
        )
    for name in held:
        merge = KINDS[name].merge
        assert merge is not None
        merge(clip)
