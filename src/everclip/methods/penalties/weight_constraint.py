"""Weight constraint: trainable parameters stay near those of a reference."""

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
        on: parts that are held, in the words of `trainable`; `null` = all that trains.
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
        held = {name: tensor for name, tensor in step.weights.items() if name in self._held}
        total = squared_distance(held, step.anchors[self.settings.reference])
        size = sum(tensor.numel() for tensor in held.values()) if self.settings.reduce == "mean" else 1
        return self.settings.weight * total / size

    def prepare(self, backbone: Backbone, trainable: Sequence[str]) -> None:
        """Note which parameters are held.

        Raises:
            ConfigError: if a part is named of which nothing trains.
        """
        on = self.settings.on
        named = set(trainable) if on is None else {f"backbone.clip.{n}" for n in choose(backbone.clip, on)}
        self._held = named & set(trainable)
        if not self._held and trainable:
            raise ConfigError(
                f"method.penalties.{self.name}.on: nothing of {', '.join(on or ())} trains, so nothing can be held."
            )
