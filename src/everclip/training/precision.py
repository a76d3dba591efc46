"""Number formats of training: autocast and, for fp16, a gradient scaler whose state can be saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from everclip.processor import EMULATED, bf16_instructions

SCALER = "scaler|"
"""Prefix of the scaler's state among the optimiser's tensors."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WHOLE = ("growth_interval", "_growth_tracker")


def chosen_precision(name: str, device: torch.device) -> str:
    """Return the precision on a device, with `auto` resolved.

    `auto` is bf16 on a GPU that supports it. On a CPU it is always fp32, so that the same command gives the same
    numbers on every machine.
    """
    if name != "auto":
        return name
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if fast else "fp32"


def slow_precision(name: str, device: torch.device) -> str | None:
    """Return a note if a format is slower than fp32 on a device; `None` if it is not."""
    remedy = "training.precision=auto (or fp32) is faster here"
    if name == "bf16" and device.type == "cpu" and bf16_instructions() is False:
        return f"bf16: {EMULATED}; {remedy}"
    if (
        name == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return f"bf16: this GPU has no bf16 units, so bf16 is emulated and slow; {remedy}, and so is fp16"
    return None


class Precision:
    """Autocast and loss scaling of one phase; weights and moments always stay in float32.

    Args:
        name: `auto`, `fp32`, `bf16` or `fp16`.
        device: the device of training.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._name, self._device = chosen_precision(name, device), device
        self.scaler = torch.amp.GradScaler(device.type) if self._name == "fp16" else None

    def autocast(self) -> Any:
        """Return the context for forward passes."""
        return torch.autocast(self._device.type, _DTYPES[self._name], enabled=self._name != "fp32")

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients of a loss, scaled for fp16."""
        torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))

    def step(self, optimiser: torch.optim.Optimizer, clip: float | None) -> torch.Tensor | None:
        """Clip and step. Return the norm of the gradient; `None` without clipping.

        With fp16, the scaler first removes its factor, and skips a step whose gradient overflowed. This is not a
        divergence, so the norm is not returned.
        """
        if self.scaler is not None:
            self.scaler.unscale_(optimiser)
        norm = None
        if clip is not None:
            trained = [p for group in optimiser.param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(trained, clip)
        if self.scaler is None:
            optimiser.step()
            return norm
        self.scaler.step(optimiser)
        self.scaler.update()
        return None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the scaler's state as named tensors."""
        if self.scaler is None:
            return {}
        state = self.scaler.state_dict()
        return {f"{SCALER}{k}": torch.tensor(float(v), dtype=torch.float64) for k, v in state.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `tensors` returned."""
        state = {k.removeprefix(SCALER): v.item() for k, v in tensors.items() if k.startswith(SCALER)}
        if state and self.scaler is not None:
            self.scaler.load_state_dict({k: int(v) if k in _WHOLE else v for k, v in state.items()})
