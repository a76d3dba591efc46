"""A method of one's own, in a file outside the package: LayerNorms train, features stay near the start model.

Run it with `everclip run emoji-time method=./mine.py:Mine method.distil=5`.
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field

from everclip import SlotMethod
from everclip.contracts import Batch, Progress
from everclip.methods.settings import SlotSettings
from everclip.models.backbone import Backbone


class MySettings(SlotSettings):
    """The four slots, and what this method adds."""

    trainable: tuple[str, ...] = ("image-layernorm", "text-layernorm")
    distil: float = Field(1.0, ge=0)


class Mine(SlotMethod):
    """Squared distance between the features of the model and those of the start model, beside the task's loss."""

    Settings = MySettings

    def __init__(self, backbone: Backbone, settings: MySettings, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        # A submodule, so that checkpoints hold it: a resumed run builds from the start model and is then restored.
        self.teacher = copy.deepcopy(backbone).requires_grad_(False)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        losses = super().forward(batch, progress)
        pixels = batch["main"]["image"]
        with torch.no_grad():
            wanted = self.teacher.encode_image(pixels)
        distance = (self.backbone.encode_image(pixels) - wanted).square().sum(dim=1).mean()
        return {**losses, "distil": self.settings.distil * distance}  # type: ignore[attr-defined]
