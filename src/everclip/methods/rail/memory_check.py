"""Check that the sums of a regression fit in memory, before anything is encoded."""

from __future__ import annotations

import torch

from everclip.errors import ConfigError
from everclip.memory import available_memory


def require_memory(width: int) -> None:
    """Check that sums `(width, width)` fit in memory.

    Raises:
        ConfigError: if not; states their size.
    """
    free = available_memory()
    if not (_can_allocate(width) if free is None else 8 * width**2 <= free):
        raise ConfigError(
            f"method.dimension: {width:,} needs {8 * width**2 / 1e9:,.0f} GB for the sums alone, more than the "
            "available memory; set a smaller number."
        )


def _can_allocate(width: int) -> bool:
    try:
        torch.empty(width, width, dtype=torch.float64)  # freed at once
    except RuntimeError:
        return False
    return True
