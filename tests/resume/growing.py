"""A method of one's own that keeps state of every kind: `conftest.py` copies this file as `mine.py`.

Each task grows a linear map; the map follows a running mean of the features, and pictures are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from everclip import SlotMethod
from everclip.contracts import Batch, Past, Phase, Progress, Task, Validate
from everclip.methods.settings import SlotSettings
from everclip.models.backbone import Backbone


class MySettings(SlotSettings):
    """The four slots, and what this method adds."""

    trainable: tuple[str, ...] = ("image-layernorm", "text-layernorm")
    momentum: float = Field(0.5, ge=0, le=1)


class Mine(SlotMethod):
    """The task's loss, and the distance of mapped features to their running mean."""

    Settings = MySettings

    def __init__(self, backbone: Backbone, settings: MySettings, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        self.maps = torch.nn.ModuleList()
        self.width = int(backbone.encode_text(backbone.tokenise(["a"])).shape[1])
        self.mean = torch.zeros(self.width)
        self.newest = torch.zeros(self.width)
        self.pictures, self.spread = 0, {}

    def on_begin_task(self, task: Task, past: Past) -> None:
        self._add_map()
        own = [f"backbone.clip.{n}" for n in self.backbone.clip.state_dict() if ".ln_" in n]
        self.trainable = [*own, f"maps.{len(self.maps) - 1}.weight"]

    def _add_map(self) -> None:
        self.maps.append(torch.nn.Linear(self.width, self.width, bias=False))
        torch.nn.init.eye_(self.maps[-1].weight)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        losses = super().forward(batch, progress)
        mapped = self.maps[-1](self.backbone.encode_image(batch["main"]["image"]))
        self.newest = mapped.detach().mean(dim=0)
        self.pictures += len(mapped)
        return {**losses, "mine": (mapped - self.mean).square().mean()}

    def on_step(self, progress: Progress) -> None:
        self.mean = self.mean.lerp(self.newest, self.settings.momentum)  # type: ignore[attr-defined]

    def on_end_phase(self, task: Task, phase: Phase) -> None:
        self.spread = {**self.spread, f"{task.name}, {phase.name}": float(self.mean.std())}

    def on_end_task(self, task: Task, past: Past, validate: Validate) -> None:
        self.notes["mine"] = {"pictures": self.pictures, "spread": self.spread}

    def structure(self) -> dict[str, Any]:
        return {"maps": len(self.maps)}

    def grow(self, structure: Mapping[str, Any]) -> None:
        while len(self.maps) < structure["maps"]:
            self._add_map()

    def extra_tensors(self) -> dict[str, torch.Tensor]:
        return {**super().extra_tensors(), "own.mean": self.mean}

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "pictures": self.pictures, "spread": self.spread}

    def load_extra(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        super().load_extra(tensors, state)
        self.mean, self.pictures, self.spread = tensors["own.mean"], state["pictures"], state["spread"]
