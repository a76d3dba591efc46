"""Whether this processor computes in bfloat16. It imports no torch, and asks the one that is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16", "arm_bf16", "sve_bf16"})
"""Instructions that multiply bfloat16: of x86 processors, and of ARM's as Linux and torch name them."""

EMULATED = (
    "this processor has no bf16 instructions (avx512_bf16 or amx_bf16; on ARM bf16), so bf16 is emulated: a training "
    "step may take many times as long as in fp32 (about 14 times without AVX-512)"
)
"""What to tell people where `bf16_instructions` returns `False`."""


def bf16_instructions() -> bool | None:
    """Return whether the processor multiplies bfloat16 itself; `None` where neither torch nor the system says."""
    torch = sys.modules.get("torch")
    if torch is not None and _switched_off(torch):
        return False
    flags = _flags_of_torch(torch) if torch is not None else None
    if flags is None:
        flags = _flags_of_system()
    return None if flags is None else bool(flags & BF16_FLAGS)


def _switched_off(torch: object) -> bool:
    """Whether torch's library of kernels computes no bf16, which ONEDNN_MAX_CPU_ISA may be the cause of."""
    try:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[attr-defined]  # torch names it nowhere
    except (AttributeError, RuntimeError):  # built without that library, or older than the question
        return False


def _flags_of_torch(torch: object) -> frozenset[str] | None:
    """Return the instructions that torch knows of; `None` from a torch that cannot be asked."""
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
