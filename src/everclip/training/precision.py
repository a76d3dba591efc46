"""Number formats of training: autocast and, for fp16, a gradient scaler whose state can be saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

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


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Compute attention by two matrix products and a softmax, in place of torch's fused kernel.

    In bf16 on a CPU, the fused kernel takes 3 times as long up to 77 tokens, 1.5 times at 197, and as long at 577
    (benchmarks/attention.py); its gradients are no closer to those of fp32. The price is memory: a few bytes per head,
    query and key are kept for the backward pass. Whoever trains long sequences in bf16 on a CPU needs more of it.
    """
    # Named after CUDA, but a CPU obeys it too. torch 2.4 lacks it, and always computes the products in bf16.
    switches: Any = torch.backends.cuda
    known = hasattr(switches, "allow_fp16_bf16_reduction_math_sdp")
    before = known and switches.fp16_bf16_reduction_math_sdp_allowed()
    with sdpa_kernel(SDPBackend.MATH):
        try:
            if known:
                switches.allow_fp16_bf16_reduction_math_sdp(True)
            yield
        finally:
            if known:
                switches.allow_fp16_bf16_reduction_math_sdp(before)


class Precision:
    """Autocast and loss scaling of one phase; weights and moments always stay in float32.

    Args:
        name: `auto`, `fp32`, `bf16` or `fp16`.
        device: the device of training.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._name, self._device = chosen_precision(name, device), device
        self.scaler = torch.amp.GradScaler(device.type) if self._name == "fp16" else None

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Return the context for forward passes."""
        enabled = self._name != "fp32"
        with torch.autocast(self._device.type, _DTYPES[self._name], enabled=enabled), self._kernels():
            yield

    def _kernels(self) -> AbstractContextManager[None]:
        """Return the context that chooses the kernel of attention; torch's own choice for fp32 and on a GPU."""
        return unfused_attention() if (self._device.type, self._name) == ("cpu", "bf16") else nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients of a loss, scaled for fp16."""
        with self._kernels():  # a checkpointed block is computed again, and must save the same tensors
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
