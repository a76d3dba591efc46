"""One `Accelerator` per process: device, precision and processes are settings, never other code."""

from __future__ import annotations

from functools import cache

import torch
from accelerate import Accelerator

from everclip.config import TrainingConfig
from everclip.errors import ConfigError


@cache
def _accelerator(device: str) -> Accelerator:
    # Precision is not accelerate's business here: its state is one per process, ours one per phase.
    return Accelerator(cpu=device == "cpu")


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
    return _accelerator(device)
