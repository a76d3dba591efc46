"""Build optimisers from parameter groups, and store their state as named tensors (no pickle)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from everclip.config import TrainingConfig
from everclip.contracts import Phase
from everclip.errors import ConfigError
from everclip.models.parameters import parameters_of
from everclip.training.row_scale import row_scaled, scale_rows


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
    if kind == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    if kind == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


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
        # AdamW counts steps on the CPU; all other tensors are on the device of the parameter.
        device = torch.device("cpu") if slot == "step" else parameter.device
        optimiser.state[parameter][slot] = tensor.to(device).clone()
