"""One `Accelerator` per process: device, precision and processes are settings, never other code."""

from __future__ import annotations

from functools import cache

import torch
from accelerate import Accelerator

from everclip.config import TrainingConfig
from everclip.errors import ConfigError

_ELSEWHERE = (
    "training.device: {wanted!r} is asked for and this process already works on {held!r}: accelerate knows one device "
    "per process. Ask for the same device or for auto, or use a new process (in a notebook: restart the kernel)."
)


@cache
def _accelerator(device: str) -> Accelerator:
    # Precision is not accelerate's business here: its state is one per process, ours one per phase.
    try:
        found = Accelerator(cpu=device == "cpu")
    except ValueError as error:  # accelerate's own refusal to go from a GPU to the CPU
        raise ConfigError(_ELSEWHERE.format(wanted=device, held="another device")) from error
    return found


def start_processes(config: TrainingConfig) -> Accelerator:
    """Return this process's accelerator; set the number of threads.

    Raises:
        ConfigError: if a GPU is asked for and there is none, fp16 without a GPU, or another device than this process
            works on already.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "training.device: 'cuda' was asked for, but torch sees no GPU. Use device=cpu or auto."
        )
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # A convolution in TF32 keeps ten bits and chooses its algorithm by the size of the batch: fp32 means fp32.
    torch.backends.cudnn.allow_tf32 = False
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    found = _accelerator(device)
    if config.device not in ("auto", found.device.type):
        raise ConfigError(_ELSEWHERE.format(wanted=device, held=found.device.type))
    if config.precision == "fp16" and found.device.type == "cpu":
        raise ConfigError("training.precision: fp16 needs a GPU; on a CPU use auto or fp32.")
    return found
