"""The smallest method with a selector: the frozen CLIP, which says which task each picture belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from everclip.contracts import Batch, Features, Past, Phase, Progress, Task
from everclip.methods.selectors.build import build
from everclip.methods.settings import SlotSettings
from everclip.methods.slots import SlotMethod
from everclip.models.backbone import Backbone


class RoutedSettings(SlotSettings):
    """The selector and nothing else."""

    trainable: tuple[str | dict[str, Any], ...] = ("logit-scale",)
    selector: dict[str, Any] = Field(default_factory=lambda: {"kind": "gaussian"})


class Routed(SlotMethod):
    """Learns its selector alone."""

    Settings = RoutedSettings
    gathers = True
    settings: RoutedSettings

    def __init__(self, backbone: Backbone, settings: RoutedSettings, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        found = build(settings.selector, backbone)
        assert found is not None
        self.selector = found

    @property
    def batch_dependent(self) -> str | None:
        return self.selector.batch_dependent

    def routes(self) -> tuple[str, ...]:
        return self.selector.routes()

    def on_begin_task(self, task: Task, past: Past) -> None:
        self.selector.begin_task(self.backbone, task, past)

    def phases(self, task: Task, past: Past) -> list[Phase]:
        return self.selector.phases(task, past)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        assert self.selector.owns(batch)
        found: dict[str, torch.Tensor] = self.selector(self.backbone, batch, progress)
        return found

    def on_end_phase(self, task: Task, phase: Phase) -> None:
        self.selector.end_phase(phase)

    def encode_images(self, pixels: torch.Tensor, known_task: int | None = None) -> Features:
        route = self.selector.decide(self.selector.features(self.backbone, pixels))
        return {**super().encode_images(pixels), "route": route.float()}

    def structure(self) -> dict[str, Any]:
        return {"selector": self.selector.structure()}

    def grow(self, structure: Mapping[str, Any]) -> None:
        self.selector.grow(structure["selector"])

    def encoder_keys(self) -> dict[str, str]:
        return {**super().encoder_keys(), "image": f"{len(self.selector.tasks)}"}
