"""What every penalty is: settings, a lifecycle, and a loss from what one training step shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field

from everclip.config import Frozen
from everclip.contracts import Batch, Past, Progress, Stream, Task
from everclip.methods.penalties.teachers import Teachers
from everclip.models.backbone import Backbone

Reference = Literal["initial", "task-start"]
Tensors = Mapping[str, torch.Tensor]


class PenaltySettings(Frozen):
    """What every penalty has.

    Attributes:
        weight: factor on the loss; 0 measures nothing and costs nothing.
        reference: the model it looks back on: the one the run began from, or the one the task began from.
    """

    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    reference: Reference = "task-start"


@dataclass(frozen=True)
class StepView:
    """What one training step shows to the penalties.

    Attributes:
        batch: stream name -> columns; `main` is the task's own stream.
        progress: where the step stands.
        backbone: the student.
        image: its unit embeddings `(N, D)` of the pictures of `main`, with gradient.
        text: its unit embeddings of the captions `(N, D)`, or of the class texts `(C, D)`.
        weights: the parameters that train: name -> tensor, with gradient.
        anchors: the same as they were: `initial` and `task-start`, as far as a penalty asked for them.
        teachers: frozen copies of the backbone.
    """

    batch: Batch
    progress: Progress
    backbone: Backbone
    image: torch.Tensor
    text: torch.Tensor
    weights: Tensors
    anchors: Mapping[str, Tensors]
    teachers: Teachers
    _seen: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether the texts are those of classes, the same in every process, rather than one caption per picture."""
        return "label" in self.batch["main"]

    def teacher_image(self, kind: str) -> torch.Tensor:
        """Return the teacher's embeddings of the pictures of `main` `(N, D)`; equal for all who ask."""
        pixels = self.batch["main"].get("image")
        if pixels is None:
            # Embeddings come from a cache: the tower is frozen, so teacher and student are one.
            return self.image.detach()
        return self._once(("image", kind), lambda: self.teachers.image(kind, pixels, self.backbone))

    def teacher_text(self, kind: str) -> torch.Tensor:
        """Return the teacher's embeddings of what `text` shows; class texts are encoded once per phase."""
        main = self.batch["main"]
        tokens = main.get("class_tokens" if self.labelled else "tokens")
        if tokens is None:
            return self.text.detach()
        if self.labelled:
            place = (self.progress.task, self.progress.phase)
            return self.teachers.bank(kind, place, tokens, self.backbone, short=True)
        return self._once(("text", kind), lambda: self.teachers.text(kind, tokens, self.backbone))

    def _once(self, key: tuple[str, str], make: Any) -> torch.Tensor:
        if key not in self._seen:
            self._seen[key] = make()
        return self._seen[key]


S = TypeVar("S", bound=PenaltySettings)


class Penalty(Generic[S]):
    """A loss beside the task's own; subclasses give `Settings` and `loss`.

    Args:
        name: what the log calls the loss, and a stream of its own.
        settings: an instance of `Settings`.

    Class attributes:
        Settings: the pydantic model of its settings.
        uses_teacher, uses_weights: what of the reference it needs: a frozen copy that encodes, or the bare weights.
        needs_reference: which of the scenario's reference data it needs: any of `images` and `texts`.
    """

    Settings: ClassVar[type[PenaltySettings]] = PenaltySettings
    uses_teacher: ClassVar[bool] = False
    uses_weights: ClassVar[bool] = False
    needs_reference: ClassVar[frozenset[str]] = frozenset()

    notes: tuple[str, ...] = ()
    """What people should know about it; a phase says it once."""

    def __init__(self, name: str, settings: S) -> None:
        self.name, self.settings = name, settings

    @property
    def teacher(self) -> str:
        """The teacher that it asks, in the words of `everclip.methods.penalties.teachers`."""
        return self.settings.reference

    def prepare(self, backbone: Backbone, trainable: Sequence[str]) -> None:
        """Look at the student once, before anything trains; `trainable` names what will. Nothing by default."""

    def begin_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Prepare for a task; nothing by default."""

    def streams(self, main: Stream, past: Past | None = None) -> dict[str, Stream]:
        """Return streams that each step shall bring besides `main`; none by default.

        Args:
            main: the task's own stream.
            past: holds the scenario's reference data.
        """
        return {}

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted loss of one step, a scalar; the mean over this process's share of the batch."""
        raise NotImplementedError

    def end_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Take note of what was learned; nothing by default."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return tensors that a checkpoint needs; none by default."""
        return {}

    def load(self, tensors: Tensors) -> None:
        """Take back what `tensors` returned."""
