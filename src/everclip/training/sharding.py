"""Shard a model over processes while it trains (FSDP2, PyTorch's `fully_shard`).

Each process keeps a part of every weight, gradient and moment; a block's weights are gathered when it computes. Only
the steps of a phase see the sharded model. Whatever looks at the model between steps (evaluation, checkpoints, the
guard, merging) sees the whole one, with the weights of the last step: its memory is freed while steps run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from everclip.contracts import Phase
from everclip.distributed import any_process, world
from everclip.errors import ConfigError, EverclipError
from everclip.interfaces import Learnable
from everclip.models.blocks import blocks_of
from everclip.models.clip import Clip
from everclip.training.precision import Precision

WHERE = "backbone.clip."


class Whole:
    """A model that is not sharded: nothing to do around steps."""

    def whole(self) -> AbstractContextManager[None]:
        """Return the context in which the whole model may be read and changed between steps."""
        return nullcontext()

    def step(
        self, precision: Precision, optimiser: torch.optim.Optimizer, most: float | None
    ) -> torch.Tensor | None:
        """Clip gradients to a norm of `most` and update; return the norm before (see `Precision.step`)."""
        return precision.step(optimiser, most)

    def agreed(self, flag: torch.Tensor) -> torch.Tensor:
        """Return whether a flag about this process's tensors is set on any process that holds others."""
        return flag

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Give the whole model back after an error that all processes raise together, so that it can be used on.

        After an error of one process alone nothing is given back: it would wait for the others' parts for ever.
        """
        try:
            yield
        except EverclipError:
            self.end()
            raise

    def end(self) -> None:
        """Give the whole model back, with the present weights."""


class Sharded(Whole):
    """A sharded copy of a method's CLIP, which stands in for it during steps.

    Args:
        method: the method; its CLIP is replaced by the copy until `end`.
        phase: what trains.
        device: the device of training.

    Raises:
        ConfigError: if the phase trains anything besides the CLIP's own weights, or the model has no blocks.
    """

    def __init__(self, method: Learnable, phase: Phase, device: torch.device) -> None:
        _require_shardable(method, phase)
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self._method, self._whole, self._device = method, method.backbone.clip, device
        copy: Any = deepcopy(self._whole)
        mesh = init_device_mesh(device.type, (world(),))
        # FSDP2 shards rows, and a scalar has none: the scale and the bias stay whole on every process.
        self._scalars = {p for p in copy.parameters() if p.dim() == 0}
        for block in blocks_of(copy):
            fully_shard(block, mesh=mesh)
        fully_shard(copy, mesh=mesh, ignored_params=self._scalars)
        for name in ("encode_image", "encode_text"):
            register_fsdp_forward_method(copy, name)
        self._copy: Clip = copy
        self._swap(self._copy)
        self._free()

    def step(
        self, precision: Precision, optimiser: torch.optim.Optimizer, most: float | None
    ) -> torch.Tensor | None:
        """Average the gradients of what is not sharded (FSDP2 averages the others), clip over all, and update."""
        import torch.distributed as group

        for scalar in self._scalars:
            if scalar.grad is not None:
                group.all_reduce(scalar.grad)
                scalar.grad.div_(world())
        parameters = [p for own in optimiser.param_groups for p in own["params"]]
        norm = None if most is None else _clipped(parameters, most)
        precision.step(optimiser, None)
        return norm

    def agreed(self, flag: torch.Tensor) -> torch.Tensor:
        """Return whether the flag is set on any process: each sees its own parts."""
        # Not the flag's own device: a process without any gradient has one on the CPU, where NCCL sends nothing.
        return torch.tensor(any_process(bool(flag), self._device))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Let everybody see the whole model; what they change is kept. After an error, it stays whole."""
        self.end()
        yield
        own = dict(self._whole.named_parameters())
        with torch.no_grad():
            for name, part in self._copy.named_parameters():
                part.copy_(sharded_like(own[name].detach(), part))
        self._swap(self._copy)
        self._free()

    def end(self) -> None:
        """Give the whole model back, with the present weights. All processes must call it."""
        parts = dict(self._copy.named_parameters())
        with torch.no_grad():
            for name, parameter in self._whole.named_parameters():
                parameter.data = whole_of(parts[name].detach()).clone()
                parameter.grad = None
        self._swap(self._whole)

    def _swap(self, clip: Clip) -> None:
        self._method.backbone.clip = clip

    def _free(self) -> None:
        for parameter in self._whole.parameters():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor in one piece, and any other as it is. All processes must call it for sharded ones."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a sharded tensor, and any other as it is."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def sharded_like(tensor: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor, equal on all processes, sharded as an example is; a scalar, and unsharded: as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(example, DTensor) or tensor.dim() == 0:
        return tensor
    return distribute_tensor(tensor, example.device_mesh, example.placements)


def _clipped(parameters: list[nn.Parameter], most: float) -> torch.Tensor:
    """Scale gradients to a norm of at most `most`, over sharded and whole parameters; return the norm before."""
    import torch.distributed as group

    grads = [p.grad for p in parameters if p.grad is not None]
    squares = torch.zeros((), device=own_part(parameters[0]).device)  # also without any gradient
    for grad in grads:
        # What is whole is the same on all processes, and counts once.
        share = 1.0 if hasattr(grad, "to_local") else 1.0 / world()
        squares = squares + share * own_part(grad).float().square().sum()
    group.all_reduce(squares)
    norm = squares.sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)  # as `clip_grad_norm_` of torch
    for grad in grads:
        own_part(grad).mul_(factor)
    return norm


def _require_shardable(method: Learnable, phase: Phase) -> None:
    names = [name for group in phase.param_groups for name in group.names]
    outside = [name for name in names if not name.startswith(WHERE)]
    grown = [name for name in names if "parametrizations." in name]
    if outside or grown:
        raise ConfigError(
            f"training.shard: phase {phase.name!r} trains {(outside + grown)[0]!r}, which is no weight of the CLIP "
            "itself. Leave training.shard out: added modules are small."
        )
    if len(blocks_of(method.backbone.clip)) == 0:
        raise ConfigError("training.shard: this model has no transformer blocks of open_clip to shard.")


def whole_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors in one piece. All processes must call it."""
    return {name: whole_of(tensor) for name, tensor in tensors.items()}
