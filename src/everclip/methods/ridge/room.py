"""Whether memory holds what a regression sums up, asked before anything is drawn or encoded."""

from __future__ import annotations

from pathlib import Path

import torch

from everclip.errors import ConfigError

MEMORY = Path("/proc/meminfo")
SHARE = Path("/sys/fs/cgroup/memory.max")


def available() -> int | None:
    """Return how many bytes this process may still take, at the most; `None` where the system does not say."""
    try:
        lines = MEMORY.read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    try:
        return min(free, int(SHARE.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return free  # no container, or one that sets no limit


def require_room(width: int) -> None:
    """Refuse sums `(width, width)` that memory does not hold.

    Raises:
        ConfigError: with how much they take.
    """
    free = available()
    if not (_may_be_asked_for(width) if free is None else 8 * width**2 <= free):
        raise ConfigError(
            f"method.dimension: {width:,} needs {8 * width**2 / 1e9:,.0f} GB for the sums alone, which memory does not "
            "have; set fewer."
        )


def _may_be_asked_for(width: int) -> bool:
    try:
        torch.empty(width, width, dtype=torch.float64)  # given back at once
    except RuntimeError:
        return False
    return True
