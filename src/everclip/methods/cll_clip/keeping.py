"""Online EWC on what CLL-CLIP trains: each task trains other rows of the token embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from everclip.contracts import Batch, Past, Progress, Task
from everclip.methods.gradient_pass import MEASURE
from everclip.methods.penalties.base import StepView
from everclip.methods.penalties.build import build
from everclip.methods.penalties.oewc import Oewc
from everclip.methods.penalties.teachers import TASK_START, Teachers
from everclip.models.backbone import Backbone
from everclip.models.modules.token_rows import RowEmbedding, embedding_of
from everclip.models.parameters import parameters_of

ANCHOR, PENALTY = "anchor.", "penalty."


class Keeping:
    """The penalties of a method whose token rows are a parameter of their own.

    Args:
        settings: of the slot `penalties`.
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self.penalties = build(settings)
        self._start: dict[str, torch.Tensor] = {}

    def begin(self, method: nn.Module, names: list[str], backbone: Backbone, task: Task, past: Past) -> None:
        """Store the values of the parameters with these names, which train in a task."""
        if not self.penalties:
            return
        self._start = {name: method.get_parameter(name).detach().clone() for name in names}
        self.name_tables(names, backbone)
        for penalty in self.penalties:
            penalty.begin_task(backbone, task, past)

    def name_tables(self, names: list[str], backbone: Backbone) -> None:
        """Tell the penalties which rows of the table the parameter of rows holds."""
        embedding = embedding_of(backbone.clip)
        if not isinstance(embedding, RowEmbedding):
            return
        places = (embedding.slots >= 0).nonzero()[:, 0]
        for penalty in self.penalties:
            if isinstance(penalty, Oewc):
                penalty.tables = {
                    n: (places, len(embedding.weight)) for n in names if n.endswith("token_embedding.rows")
                }

    def losses(
        self,
        method: nn.Module,
        batch: Batch,
        progress: Progress,
        backbone: Backbone,
        texts: torch.Tensor,
        teachers: Teachers,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of the penalties by name; none in the pass that measures gradients.

        Args:
            method: holds the parameters.
            batch, progress, backbone, teachers: see `StepView`.
            texts: the student's embeddings of the captions `(N, D)`.
        """
        if not self.penalties or progress.phase == MEASURE:
            return {}
        now = parameters_of(method, self._start)
        anchors = {TASK_START: self._start}
        view = StepView(batch, progress, backbone, texts, texts, now, anchors, teachers)
        return {penalty.name: penalty.loss(view) for penalty in self.penalties}

    def end(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Update the penalties after a task, and forget its start."""
        for penalty in self.penalties:
            penalty.end_task(backbone, task, past)
        self._start = {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint needs."""
        held = {f"{ANCHOR}{name}": tensor for name, tensor in self._start.items()}
        for penalty in self.penalties:
            held |= {f"{PENALTY}{penalty.name}.{key}": tensor for key, tensor in penalty.tensors().items()}
        return held

    def load(self, tensors: Mapping[str, torch.Tensor], names: list[str], backbone: Backbone) -> None:
        """Restore what `tensors` returned."""
        self._start = _below(tensors, ANCHOR)
        self.name_tables(names, backbone)
        for penalty in self.penalties:
            penalty.load(_below(tensors, f"{PENALTY}{penalty.name}."))


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
