"""QuickGELU or GELU: a model that runs another activation than it was trained with loses accuracy without an error.

OpenAI's models (and some later ones) use `x * sigmoid(1.702 x)`. The weights themselves do not show it.
"""

from __future__ import annotations

from typing import Any

import open_clip

from everclip.errors import ConfigError

_WORDS = {True: "QuickGELU", False: "GELU"}


def decide_activation(
    name: str, model_cfg: dict[str, Any], trained_with: bool | None, forced: bool | None, why: str
) -> list[str]:
    """Check that a configuration runs the activation its weights were trained with.

    Args:
        name: the backbone's name.
        model_cfg: its configuration, before `forced` is applied.
        trained_with: whether the weights were trained with QuickGELU; `None` if unknown.
        forced: `backbone.force_quick_gelu`, the user's decision.
        why: the source of `trained_with`, for the error.

    Returns:
        A note if the user's decision differs from what is known.

    Raises:
        ConfigError: if they disagree; names the architecture to use.
    """
    runs = bool(model_cfg.get("quick_gelu"))
    if forced is not None:
        if trained_with not in (None, forced) or (trained_with is None and forced != runs):
            return [f"activation: {_WORDS[forced]} by backbone.force_quick_gelu, against {why}"]
        return []
    if trained_with is None or trained_with == runs:
        return []
    twin = _twin(name, model_cfg)
    use = f"use backbone.name={twin}, or set" if twin else "set"
    raise ConfigError(
        f"backbone: {name} runs {_WORDS[runs]}, but its weights were trained with {_WORDS[trained_with]} ({why}): "
        f"{use} backbone.force_quick_gelu={str(trained_with).lower()} (or ={str(runs).lower()} if you know better)."
    )


def _twin(name: str, model_cfg: dict[str, Any]) -> str | None:
    """Return open_clip's name of the same architecture with the other activation."""
    for other in (f"{name}-quickgelu", name.removesuffix("-quickgelu")):
        config = (
            open_clip.get_model_config(other) if other != name and other in open_clip.list_models() else None
        )
        if config is not None and bool(config.get("quick_gelu")) != bool(model_cfg.get("quick_gelu")):
            return other
    return None
