"""One `Accelerator` per process: device, precision and processes are settings, never other code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator

from everclip.config import TrainingConfig
from everclip.errors import ConfigError


@cache
def _accelerator(device: str, precision: str) -> Accelerator:
    mixed = {"fp32": "no"}.get(precision, precision)
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed)


def start_processes(config: TrainingConfig) -> Accelerator:
    """Return this process's accelerator; set the number of threads.

    Raises:
        ConfigError: if a GPU is asked for and there is none, or fp16 without a GPU.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "training.device: 'cuda' was asked for, but torch sees no GPU. Use device=cpu or auto."
        )
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.precision == "fp16" and device == "cpu":
        raise ConfigError("training.precision: fp16 needs a GPU; on a CPU use fp32 or bf16.")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return _accelerator(device, config.precision)


def is_first() -> bool:
    """Return whether this is the first (or only) process: the one that writes and prints."""
    group = torch.distributed
    return not (group.is_available() and group.is_initialized()) or group.get_rank() == 0


def agree(accelerator: Accelerator, flag: bool) -> bool:
    """Return whether the flag is up on any process; all must call it at the same place."""
    if accelerator.num_processes == 1:
        return flag
    up = torch.tensor([int(flag)], device=accelerator.device)
    torch.distributed.all_reduce(up, op=torch.distributed.ReduceOp.MAX)
    return bool(up.item())


def everywhere(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """Run `make` on the first process and return its result on all (JSON-like values)."""
    if accelerator.num_processes == 1:
        return make()
    box = [make() if accelerator.is_main_process else None]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
