"""Feature distillation: keep the student's embeddings near those of a teacher."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from everclip.methods.penalties.base import Penalty, PenaltySettings, Reference, StepView


class FeatureDistillSettings(PenaltySettings):
    """Settings.

    Attributes:
        towers: the towers whose embeddings are constrained.
        distance: `cosine` is `1 - cos`; `squared` is the squared Euclidean distance, twice that for unit embeddings.
    """

    reference: Reference = "initial"
    towers: tuple[Literal["image", "text"], ...] = Field(("image", "text"), min_length=1)
    distance: Literal["cosine", "squared"] = "cosine"


class FeatureDistill(Penalty[FeatureDistillSettings]):
    """Distance of embeddings to those of the start model (the FD term of CLIP-KD, arXiv 2307.12732).

    `weight * sum over towers of mean_i ||z_s[i] - z_t[i]||^2` (`squared`), or half of it (`cosine`).
    """

    Settings: ClassVar[type[PenaltySettings]] = FeatureDistillSettings
    uses_teacher: ClassVar[bool] = True

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted distance of this process's rows."""
        kind, parts = self.settings.reference, []
        if "image" in self.settings.towers:
            parts.append(_squared(step.image, step.teacher_image(kind)))
        if "text" in self.settings.towers:
            parts.append(_squared(step.text, step.teacher_text(kind)))
        # For unit vectors, half the squared distance is 1 - cos, and its gradient is exactly 0 if both agree.
        factor = 0.5 if self.settings.distance == "cosine" else 1.0
        return self.settings.weight * factor * torch.stack(parts).sum()


def _squared(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return (student.float() - teacher.float()).square().sum(dim=1).mean()
