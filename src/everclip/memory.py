"""Tells how much memory is available. Does not import torch, which `everclip doctor` may find broken."""

from __future__ import annotations

from pathlib import Path

MEMORY = Path("/proc/meminfo")
SHARE = Path("/sys/fs/cgroup/memory.max")


def available_memory() -> int | None:
    """Return how many bytes this process may still use at most; `None` if the system does not say."""
    try:
        lines = MEMORY.read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    try:
        return min(free, int(SHARE.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return free  # no container, or one that sets no limit
