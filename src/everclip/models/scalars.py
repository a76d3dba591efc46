"""Logit scale and logit bias: the factor on cosines, and the constant that is added."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from everclip.errors import ConfigError
from everclip.models.checkpoint_keys import State
from everclip.models.clip import Clip

LARGEST_LOG = math.log(1000)
"""CLIP keeps the factor at 100 or less, and SigLIP learned 118; a larger number cannot be the logarithm of a factor."""

LARGEST_FACTOR = 1000.0


def add_bias(clip: Clip, state: State) -> list[str]:
    """Give a model a logit bias if its weights have one and its configuration has none.

    Returns:
        Notes on assumptions.
    """
    bias = state.get("logit_bias")
    if bias is None or getattr(clip, "logit_bias", None) is not None or bias.numel() != 1:
        return []
    clip.logit_bias = nn.Parameter(torch.zeros_like(clip.logit_scale))
    return [f"logit bias: the configuration has none; {float(bias):.4g} from the weights is kept"]


def fit_scalars(clip: Clip, state: State, path: Path) -> list[str]:
    """Bring logit scale and bias to the model's form, in place.

    Returns:
        Notes on assumptions.

    Raises:
        ConfigError: if the scale is neither a factor between 1 and 1000 nor the logarithm of one.
    """
    notes = []
    for key in ("logit_scale", "logit_bias"):
        parameter = getattr(clip, key, None)
        if parameter is None:
            continue
        if key in state and state[key].numel() == parameter.numel():
            state[key] = state[key].reshape(parameter.shape)
        elif key not in state and any(name.startswith("visual.") for name in state):
            state[key] = parameter.detach().clone()
            value = float(state[key].exp() if key == "logit_scale" else state[key])
            notes.append(f"{key.replace('_', ' ')}: the weights have none; it starts at {value:.4g}")
    scale = state.get("logit_scale")
    if scale is not None and scale.numel() == 1:
        notes += _fit_scale(state, float(scale), path)
    return notes


def _fit_scale(state: State, value: float, path: Path) -> list[str]:
    """Replace a factor by its logarithm, in place; return notes."""
    if not math.isfinite(value) or 0 <= value <= LARGEST_LOG:
        return []  # a later check rejects weights that are not finite
    if LARGEST_LOG < value <= LARGEST_FACTOR:
        state["logit_scale"] = state["logit_scale"].log()
        return [
            f"logit scale: the file holds {value:.4g}, which is the factor and not its logarithm (as a logarithm it "
            f"would mean a factor of 1e{value / math.log(10):.0f}); its logarithm {math.log(value):.4g} is used"
        ]
    factor = f"{math.exp(value):.3g}" if value < 0 else f"1e{value / math.log(10):.0f}"
    raise ConfigError(
        f"backbone: {path}: logit_scale is {value:.4g}, a factor of {factor} on cosines; expected the logarithm of a "
        f"factor from 1 to 1000 (0 to {LARGEST_LOG:.3f}; CLIP's own is at most 4.605). The file is damaged, or its "
        "training diverged: take an earlier checkpoint, or set the tensor 'logit_scale' to 4.605 and save it anew."
    )
