"""Whether memory holds what a regression sums up, asked before anything is drawn or encoded."""

from __future__ import annotations

import torch

from everclip.errors import ConfigError
from everclip.memory import available_memory


def require_room(width: int) -> None:
    """Refuse sums `(width, width)` that memory does not hold.

    Raises:
        ConfigError: with how much they take.
    """
    free = available_memory()
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
