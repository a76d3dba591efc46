"""Communication between several processes. With one process, values are returned unchanged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from everclip.errors import ProcessLostError

if TYPE_CHECKING:
    import torch

_Value = TypeVar("_Value")


def world() -> int:
    """Return the number of processes."""
    import torch.distributed as group

    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    import torch.distributed as group

    return group.get_rank() if world() > 1 else 0


def is_first() -> bool:
    """Return whether this is the first (or only) process, which writes and prints."""
    return rank() == 0


def is_first_here() -> bool:
    """Return whether this is the first (or only) process of its machine, as torchrun numbers them (`LOCAL_RANK`)."""
    return is_first() or os.environ.get("LOCAL_RANK") == "0"


def from_first(value: _Value) -> _Value:
    """Return the value of the first process on all processes. All processes must call it."""
    if world() == 1:
        return value
    import torch.distributed as group

    box = [value]
    group.broadcast_object_list(box, src=0)
    return box[0]


def any_process(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set on any process. All processes must call it."""
    if world() == 1:
        return flag
    import torch
    import torch.distributed as group

    value = torch.tensor([int(flag)], device=device)
    group.all_reduce(value, op=group.ReduceOp.MAX)
    return bool(value.item())


def mean(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over all processes (without gradient)."""
    if world() == 1:
        return values
    import torch.distributed as group

    summed = values.detach().clone()
    group.all_reduce(summed)
    return summed / world()


def concatenate(values: torch.Tensor, gradient: bool = False) -> torch.Tensor:
    """Concatenate equally long tensors of all processes along dimension 0.

    Args:
        values: `(N, ...)` on every process.
        gradient: whether gradients flow back to every process.

    Returns:
        `(W * N, ...)`, the same on every process.
    """
    if world() == 1:
        return values
    import torch
    import torch.distributed as group

    if gradient:
        from everclip.gathering import gather_with_gradient

        return gather_with_gradient(values)
    parts = [torch.empty_like(values) for _ in range(world())]
    group.all_gather(parts, values.contiguous())
    return torch.cat(parts, dim=0)


def pass_on(values: torch.Tensor) -> torch.Tensor:
    """Send a tensor to the next process of a ring, and return that of the process before (without gradient).

    All processes must call it, with equal shapes.
    """
    if world() == 1:
        return values
    import torch
    import torch.distributed as group

    received = torch.empty_like(values)
    mine, count = rank(), world()
    sends = group.P2POp(group.isend, values.contiguous(), (mine + 1) % count)
    receives = group.P2POp(group.irecv, received, (mine - 1) % count)
    for request in group.batch_isend_irecv([sends, receives]):
        request.wait()
    return received


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """Concatenate tensors of all processes along dimension 0, in process order; their lengths may differ or be 0.

    Args:
        values: `(N_r, ...)`; only the first dimension may differ.

    Returns:
        `(sum of N_r, ...)`, the same on every process.
    """
    if world() == 1:
        return values
    import torch

    counts = concatenate(torch.tensor([len(values)], device=values.device)).tolist()
    # Padded, since collectives need equal shapes; the padding is removed from the result.
    padded = values.new_zeros(max(counts), *values.shape[1:])
    padded[: len(values)] = values
    parts = concatenate(padded[None])
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_objects(value: _Value) -> list[_Value]:
    """Return the values of all processes, in process order."""
    if world() == 1:
        return [value]
    import torch.distributed as group

    parts: list[_Value | None] = [None] * world()
    group.all_gather_object(parts, value)
    return cast("list[_Value]", parts)


# -- one process fails: all stop with its reason --------------------------------------------------------------

_REASON, _PATIENCE = "everclip/reason", timedelta(seconds=3)
_SIGNS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")


@contextmanager
def stopping_together() -> Iterator[None]:
    """Let all processes stop when one fails, each with the reason of the one that failed.

    The failing process leaves its reason in the store that the processes met at; the others find their communication
    broken, and read it there. A process that was killed leaves none.

    Raises:
        ProcessLostError: on the processes that did not fail themselves.
    """
    try:
        yield
    except Exception as error:
        if world() == 1:
            raise
        if not _is_broken(error):
            _leave_reason(error)
            raise
        # Not every error of the communication means that another process ended: show what it was.
        seen = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ProcessLostError(
            f"another process of this run ended: {_reason()}. All {world()} processes stop (this is number {rank()}, "
            f"which met: {seen}). The last checkpoint is intact; the same command continues from it, also on another "
            "number of processes."
        ) from error


def _is_broken(error: Exception) -> bool:
    """Return whether an error says that processes cannot reach each other."""
    import torch.distributed as group

    text = str(error).lower()
    return isinstance(error, group.DistError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)
    )


def _leave_reason(error: Exception) -> None:
    import torch.distributed as group
    from torch.distributed.distributed_c10d import _get_default_store

    text = f"process {rank()}: {type(error).__name__}: {error}"
    try:
        _get_default_store().set(_REASON, text)
    except (group.DistError, RuntimeError):
        return  # the process that holds the store ended, too; the caller raises the error itself


def _reason() -> str:
    import torch.distributed as group
    from torch.distributed.distributed_c10d import _get_default_store

    try:
        store = _get_default_store()
        store.wait([_REASON], _PATIENCE)
        return store.get(_REASON).decode(errors="replace").rstrip(".")
    except (group.DistError, RuntimeError):
        return "it left no reason (killed, out of memory, or its machine is gone; see its own output)"
