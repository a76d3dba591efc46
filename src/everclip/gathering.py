"""Gather tensors of all processes with gradients: the gradient of a row is the sum of what all processes computed."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as group


def gather_with_gradient(values: torch.Tensor) -> torch.Tensor:
    """Return `(W * N, ...)`, the equally long tensors `(N, ...)` of all W processes in order; all must call it."""
    return cast(torch.Tensor, _Gather.apply(values))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(values)
        parts = [torch.empty_like(values) for _ in range(group.get_world_size())]
        group.all_gather(parts, values.contiguous())
        return torch.cat(parts, dim=0)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> torch.Tensor:
        gradient: torch.Tensor = outer[0].contiguous()
        if group.get_backend() == "nccl":  # gloo of older torch cannot
            own = gradient.new_empty(ctx.rows, *gradient.shape[1:])
            group.reduce_scatter_tensor(own, gradient)
            return own
        summed = gradient.clone()
        group.all_reduce(summed)
        first = group.get_rank() * ctx.rows
        return summed[first : first + ctx.rows].clone()
