"""Weight constraint: keep trainable parameters near those of a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from everclip.errors import ConfigError
from everclip.methods.losses import squared_distance
from everclip.methods.penalties.base import Penalty, PenaltySettings, StepView
from everclip.methods.trainable import choose
from everclip.models.backbone import Backbone


class WeightConstraintSettings(PenaltySettings):
    """Settings.

    Attributes:
        on: the constrained parts, named as in `trainable`; `null` = all parameters that train.
        reduce: `sum` over all elements (published), or their `mean`, whose weight does not depend on the model's size.
    """

    on: tuple[str, ...] | None = None
    reduce: Literal["sum", "mean"] = "sum"


class WeightConstraint(Penalty[WeightConstraintSettings]):
    """Squared differences to the weights at the start of the task (ZSCL, arXiv 2303.06628, equation 6).

    `weight * sum_k ||theta_k - theta_k^ref||^2`. Also L2-SP (arXiv 1802.01483) with `reference: initial`.
    """

    Settings: ClassVar[type[PenaltySettings]] = WeightConstraintSettings
    uses_weights: ClassVar[bool] = True

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted sum or mean of squared differences."""
        weights = {name: tensor for name, tensor in step.weights.items() if name in self._constrained}
        total = squared_distance(weights, step.anchors[self.settings.reference])
        size = sum(tensor.numel() for tensor in weights.values()) if self.settings.reduce == "mean" else 1
        return self.settings.weight * total / size

    def prepare(self, backbone: Backbone, trainable: Sequence[str]) -> None:
        """Decide which parameters are constrained.

        Raises:
            ConfigError: if none of them trains.
        """
        on = self.settings.on
        named = set(trainable) if on is None else {f"backbone.clip.{n}" for n in choose(backbone.clip, on)}
        self._constrained = named & set(trainable)
        if not self._constrained and trainable:
            raise ConfigError(
                f"method.penalties.{self.name}.on: nothing of {', '.join(on or ())} trains, so the penalty has no "
                "effect; name parts that train."
            )
