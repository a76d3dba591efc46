"""One `Accelerator` per process: the same code runs with any device, precision and number of processes."""

from __future__ import annotations

from functools import cache

import torch
from accelerate import Accelerator

from everclip.config import TrainingConfig
from everclip.errors import ConfigError

_ELSEWHERE = (
    "training.device: {wanted!r} is set, but this process already uses {used!r}: accelerate supports one device per "
    "process. Use the same device or auto, or start a new process (in a notebook: restart the kernel)."
)


@cache
def _accelerator(device: str) -> Accelerator:
    # Without precision: accelerate has one per process, everclip one per phase.
    try:
        return Accelerator(cpu=device == "cpu")
    except ValueError as error:  # accelerate does not switch from a GPU to the CPU
        raise ConfigError(_ELSEWHERE.format(wanted=device, used="another device")) from error


def start_processes(config: TrainingConfig) -> Accelerator:
    """Return this process's accelerator; set the number of threads.

    Raises:
        ConfigError: for a GPU if there is none, for fp16 without a GPU, or for another device than this process
            already uses.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "training.device: 'cuda' is set, but torch finds no GPU. Use training.device=cpu or auto."
        )
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # TF32 convolutions have ten bits and depend on the batch size: fp32 must mean fp32.
    torch.backends.cudnn.allow_tf32 = False
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = _accelerator(device)
    if config.device not in ("auto", accelerator.device.type):
        raise ConfigError(_ELSEWHERE.format(wanted=device, used=accelerator.device.type))
    if config.precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("training.precision: fp16 needs a GPU; on a CPU use auto or fp32.")
    return accelerator
