"""Factors on the rows of a parameter, applied inside an optimiser's step (TEIR; Yang et al., arXiv 2401.17186).

With a factor s per row, after clipping and before the moments of AdamW:

1. decay: theta <- theta (1 - lr wd s)
2. gradient: g <- s g
3. moments, bias correction and step as always; update: theta <- theta + s (theta' - theta)

Adam divides by the size of the gradient, so a constant factor on a gradient hardly changes its steps, except that a
row with s = 0 does not move. A factor on the update scales the step itself.
"""

from __future__ import annotations

from typing import Any

import torch

from everclip.contracts import RowScale


def scale_rows(optimiser: torch.optim.Optimizer) -> None:
    """Let an optimiser apply the row scales of its groups (`row_scale`, with `factors` and `row_decay`)."""
    if any(group.get("row_scale") for group in optimiser.param_groups):
        optimiser.register_step_pre_hook(_before)
        optimiser.register_step_post_hook(_after)


def row_scaled(group: dict[str, Any], scale: RowScale | None, factors: torch.Tensor | None) -> dict[str, Any]:
    """Return an optimiser's group with a row scale; its weight decay becomes a part of the scale.

    Args:
        group: of an optimiser.
        scale: what the factors multiply; `None`: the group itself.
        factors: of each row `(n, 1)`.
    """
    if scale is None:
        return group
    assert factors is not None
    decay = group["weight_decay"]
    return {**group, "row_scale": scale.on, "factors": factors, "row_decay": decay, "weight_decay": 0.0}


@torch.no_grad()
def _before(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    # In SGD and Adam, decay is a part of the gradient (L2); in AdamW it is a step of its own.
    decoupled = isinstance(optimiser, torch.optim.AdamW)
    for group in optimiser.param_groups:
        on = group.get("row_scale")
        if not on:
            continue
        factors: torch.Tensor = group["factors"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            decay = group["row_decay"] * (factors if "decay" in on else torch.ones_like(factors))
            if decoupled:
                parameter.mul_(1 - group["lr"] * decay)
            if "gradient" in on:
                parameter.grad.mul_(factors)
            if not decoupled:
                parameter.grad.addcmul_(decay.expand_as(parameter), parameter)
            if "update" in on:
                group.setdefault("starts", {})[parameter] = parameter.clone()


@torch.no_grad()
def _after(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimiser.param_groups:
        for parameter, start in group.pop("starts", {}).items():
            # Not `lerp`: a factor of 1 or 0 must give the bits of the step, or of its start.
            step = parameter - start
            factors = group["factors"]
            mixed = start + factors * step
            parameter.copy_(torch.where(factors == 1, parameter, torch.where(factors == 0, start, mixed)))
