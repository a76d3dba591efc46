"""The slot `penalties`: named losses that are added to the task's own. Their order does not matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field

from everclip.config import Frozen, validated
from everclip.errors import ConfigError, did_you_mean


class WeightConstraint(Frozen):
    """Sum of squared differences to the weights at the start of the task (ZSCL, arXiv 2303.06628, equation 6)."""

    weight: float = Field(1.0, ge=0)

    def __call__(self, now: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the weighted penalty of trainable parameters `now` against `start`."""
        return self.weight * torch.stack([(now[n] - start[n]).square().sum() for n in now]).sum()


Penalty = Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], torch.Tensor]
PENALTIES: dict[str, type[WeightConstraint]] = {"weight-constraint": WeightConstraint}


def build(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Penalty]:
    """Build the penalties that a method names.

    Raises:
        ConfigError: for an unknown name or setting.
    """
    built: dict[str, Penalty] = {}
    for name, given in settings.items():
        if name not in PENALTIES:
            raise ConfigError(f"method.penalties: {name!r} is not known.{did_you_mean(name, PENALTIES)}")
        built[name] = validated(PENALTIES[name], given, f"method.penalties.{name}")
    return built
