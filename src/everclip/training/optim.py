"""Build optimisers from parameter groups, and store their state as named tensors (no pickle)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from everclip.config import TrainingConfig
from everclip.contracts import Phase
from everclip.errors import ConfigError
from everclip.models.parameters import parameters_of
from everclip.training.row_scale import row_scaled, scale_rows
from everclip.training.sharding import sharded_like


def build_optimiser(module: nn.Module, phase: Phase, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW or SGD, or Adam if the phase names it, over the phase's parameter groups with their `lr_scale`."""
    optimiser = _optimiser(module, phase, config)
    scale_rows(optimiser)
    return optimiser


def _optimiser(module: nn.Module, phase: Phase, config: TrainingConfig) -> torch.optim.Optimizer:
    _check_factors(module, phase)
    groups = [
        row_scaled(
            {
                "params": list(parameters_of(module, group.names).values()),
                "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
                "lr_scale": group.lr_scale,
                "names": list(group.names),
            },
            group.row_scale,
            None if group.row_scale is None else module.get_buffer(group.row_scale.buffer),
        )
        for group in phase.param_groups
    ]
    kind = config.optimiser if phase.optimiser == "default" else phase.optimiser
    # None is torch's own choice: not fused. Sharded and whole weights cannot be in one call.
    how: dict[str, Any] = {"fused": config.fused or None, "foreach": False if config.shard else None}
    if kind == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, **how)
    adam: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if kind == "adam":
        return torch.optim.Adam(groups, **adam, **how)
    if kind == "adamw-8bit":
        if any(group.row_scale is not None for group in phase.param_groups):
            raise ConfigError(
                "training.optimiser: adamw-8bit cannot scale single rows, which this method does (the token rows of "
                "a language); take adamw."
            )
        return _adamw_8bit()(groups, **adam)
    return torch.optim.AdamW(groups, **adam, **how)


def require_packages(kind: str) -> None:
    """Check before a run begins that the package of an optimiser is installed.

    Raises:
        ConfigError: if it is not.
    """
    if kind == "adamw-8bit":
        _adamw_8bit()


def _adamw_8bit() -> Callable[..., torch.optim.Optimizer]:
    """Return AdamW whose moments are stored in blocks of 8-bit values (Dettmers et al., arXiv 2110.02861)."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "training.optimiser: adamw-8bit needs the package bitsandbytes: pip install 'everclip[low-memory]'. Or "
            "take adamw."
        ) from error
    return cast("Callable[..., torch.optim.Optimizer]", AdamW8bit)


def _check_factors(module: nn.Module, phase: Phase) -> None:
    for group in phase.param_groups:
        if group.row_scale is None:
            continue
        factors = len(module.get_buffer(group.row_scale.buffer))
        for name in group.names:
            rows = len(module.get_parameter(name))
            if factors != rows:
                raise ConfigError(
                    f"method: phase {phase.name!r}: {factors} factors for the {rows} rows of {name!r}."
                )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's state as `parameter|key` -> tensor."""
    tensors = {}
    for group in optimiser.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimiser.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"{name}|{key}"] = torch.as_tensor(value)
    return tensors


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Restore what `optimiser_tensors` returned."""
    named = {n: p for g in optimiser.param_groups for n, p in zip(g["names"], g["params"], strict=True)}
    for key, tensor in tensors.items():
        name, _, slot = key.partition("|")
        parameter = named[name]
        if slot == "step" and not tensor.is_floating_point():  # adamw-8bit counts steps by an int
            optimiser.state[parameter][slot] = int(tensor)
            continue
        # AdamW counts steps on the CPU, unless it is fused; all other tensors are on the device of the parameter.
        on_cpu = slot == "step" and not optimiser.defaults.get("fused")
        device = torch.device("cpu") if on_cpu else parameter.device
        value = tensor.to(device).clone()
        optimiser.state[parameter][slot] = value if slot == "step" else sharded_like(value, parameter)
