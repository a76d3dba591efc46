"""Tells whether this processor computes in bfloat16. Does not import torch, but asks it if it is imported."""

from __future__ import annotations

import sys
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16", "arm_bf16", "sve_bf16"})
"""Flags of bfloat16 instructions: of x86, and of ARM under the names of Linux and torch."""

EMULATED = (
    "this processor has no bf16 instructions (avx512_bf16 or amx_bf16; on ARM bf16), so bf16 is emulated: a training "
    "step may take many times as long as in fp32 (about 14 times without AVX-512)"
)
"""Message if `bf16_instructions` returns `False`."""


def bf16_instructions() -> bool | None:
    """Return whether the processor has bfloat16 instructions; `None` if neither torch nor the system says so."""
    torch = sys.modules.get("torch")
    if torch is not None and _switched_off(torch):
        return False
    flags = _flags_of_torch(torch) if torch is not None else None
    if flags is None:
        flags = _flags_of_system()
    return None if flags is None else bool(flags & BF16_FLAGS)


def _switched_off(torch: object) -> bool:
    """Whether oneDNN, torch's library of kernels, does not compute in bf16, for example due to ONEDNN_MAX_CPU_ISA."""
    try:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[attr-defined]  # torch names it nowhere
    except (AttributeError, RuntimeError):  # built without oneDNN, or too old
        return False


def _flags_of_torch(torch: object) -> frozenset[str] | None:
    """Return the processor flags that torch reports; `None` if this torch cannot."""
    try:
        known = torch.cpu.get_capabilities()  # type: ignore[attr-defined]  # torch names it nowhere
    except (AttributeError, RuntimeError):
        return None
    return frozenset(name for name, there in known.items() if there is True)


def _flags_of_system() -> frozenset[str] | None:
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    return frozenset(word for words in found for word in words) if found else None
