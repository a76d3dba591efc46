"""The base class of penalties: settings, a lifecycle, and a loss of a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import nn

from everclip.config import Frozen
from everclip.contracts import Batch, ClassEntry, Past, Progress, Stream, Task
from everclip.data.table import Table
from everclip.methods.penalties.teachers import INITIAL, Teachers
from everclip.models.backbone import Backbone

Reference = Literal["initial", "task-start"]
Tensors = Mapping[str, torch.Tensor]


class WeightSettings(Frozen):
    """The setting that every penalty has.

    Attributes:
        weight: factor on the loss; 0 switches it off, without any cost.
    """

    weight: float = Field(1.0, ge=0, allow_inf_nan=False)


class PenaltySettings(WeightSettings):
    """The settings of a penalty that refers to an earlier model.

    Attributes:
        reference: the earlier model: the start model of the run, or the model at the start of the task.
    """

    reference: Reference = "task-start"


@dataclass(frozen=True)
class StepView:
    """The data of one training step for penalties.

    Attributes:
        batch: stream name -> columns; `main` is the task's own stream.
        progress: the position of the step.
        backbone: the student.
        image: its unit embeddings `(N, D)` of the images of `main`, with gradient.
        text: its unit embeddings of the captions `(N, D)`, or of the class texts `(C, D)`.
        weights: the parameters that train: name -> tensor, with gradient.
        anchors: their earlier values: `initial` and `task-start`, as far as penalties need them.
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
        """Whether the texts belong to classes (equal on all processes), rather than one caption to each image."""
        return "label" in self.batch["main"]

    def teacher_image(self, kind: str) -> torch.Tensor:
        """Return the teacher's embeddings of the images of `main` `(N, D)`, computed once per step."""
        pixels = self.batch["main"].get("image")
        if pixels is None:
            # The embeddings come from a cache: the tower is frozen, so teacher and student agree.
            return self.image.detach()
        return self._once(("image", kind), lambda: self.teachers.image(kind, pixels, self.backbone))

    def teacher_text(self, kind: str) -> torch.Tensor:
        """Return the teacher's embeddings of the texts of `text`; class texts are encoded once per phase."""
        main = self.batch["main"]
        tokens = main.get("class_tokens" if self.labelled else "tokens")
        if tokens is None:
            return self.text.detach()
        if self.labelled:
            phase = (self.progress.task, self.progress.phase)
            return self.teachers.bank(kind, phase, tokens, self.backbone, short=True)
        return self._once(("text", kind), lambda: self.teachers.text(kind, tokens, self.backbone))

    def _once(self, key: tuple[str, str], make: Any) -> torch.Tensor:
        if key not in self._seen:
            self._seen[key] = make()
        return self._seen[key]


S = TypeVar("S", bound=WeightSettings)


class Penalty(Generic[S]):
    """A loss in addition to the task's own; subclasses define `Settings` and `loss`.

    Args:
        name: the name of the loss in the log, and of the penalty's own stream.
        settings: an instance of `Settings`.

    Class attributes:
        Settings: the pydantic model of its settings.
        uses_teacher, uses_weights: whether it needs the earlier model as a frozen copy, or only its weights.
        reads_gradients: whether it needs gradients of the task's own loss after training (`measure`).

    Attributes:
        modules: modules that train with the model and that only this penalty uses (`grow`). They are part of
            checkpoints and of the cost, not of predictions, merging and exports. Use all of them in every `loss`,
            because several processes wait for each gradient.
    """

    Settings: ClassVar[type[WeightSettings]] = PenaltySettings
    uses_teacher: ClassVar[bool] = False
    uses_weights: ClassVar[bool] = False
    reads_gradients: ClassVar[bool] = False

    notes: tuple[str, ...] = ()
    """Notes for people; each phase shows them once."""

    def __init__(self, name: str, settings: S) -> None:
        self.name, self.settings = name, settings
        self.modules = nn.ModuleDict()

    @property
    def teacher(self) -> str:
        """The name of its teacher, as in `everclip.methods.penalties.teachers`."""
        return self.settings.reference if isinstance(self.settings, PenaltySettings) else INITIAL

    @property
    def needs_reference(self) -> frozenset[str]:
        """The reference data of the scenario that it needs: any of `images` and `texts`; none by default."""
        return frozenset()

    @property
    def main_columns(self) -> tuple[str, ...]:
        """Further columns of the stream `main` that it reads; none by default."""
        return ()

    def prepare(self, backbone: Backbone, trainable: Sequence[str]) -> None:
        """Inspect the student once before training; `trainable` names its parameters. The default does nothing."""

    def check_task(self, table: Table, classes: tuple[ClassEntry, ...] | None) -> None:
        """Check the samples of a task before training; a run checks all of its tasks first. The default does nothing.

        Args:
            table: the samples.
            classes: the classes that the task is learned by; `None` if it is learned from captions.
        """

    def shapes(self) -> dict[str, Any]:
        """Return the shapes of the `modules` that a task needs, as JSON for `grow`; none by default."""
        return {}

    def structure(self) -> dict[str, Any]:
        """Return the shapes of existing `modules`, and what a checkpoint needs beside them, as JSON for `grow`."""
        return {}

    def grow(self, shapes: Mapping[str, Any], seed: int) -> None:
        """Create those `modules` that do not exist: before a task, and when a checkpoint is loaded.

        Args:
            shapes: what `shapes` or `structure` returned.
            seed: the run's seed, which alone decides initial values.
        """

    def new_parameters(self) -> int | None:
        """Return how many parameters the next `grow` adds; `None`: not known yet."""
        return 0

    def begin_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Prepare for a task. The default does nothing."""

    def streams(self, main: Stream, past: Past | None = None) -> dict[str, Stream]:
        """Return the streams that each step needs besides `main`; none by default.

        Args:
            main: the task's own stream.
            past: holds the scenario's reference data.
        """
        return {}

    def loss(self, step: StepView) -> torch.Tensor:
        """Return the weighted loss of one step, a scalar; the mean over this process's share of the batch."""
        raise NotImplementedError

    def measure(self, gradients: Tensors, progress: Progress) -> None:
        """Read the gradients of a batch of the pass that follows training, if it `reads_gradients`.

        Args:
            gradients: name of a parameter that trains -> gradient of the task's own loss without penalties, the same
                on all processes.
            progress: the position in this pass.
        """

    def new_values(self, trained: Tensors) -> int:
        """Return how many values it holds inside a task and does not hold now, beside `modules`; none by default."""
        return 0

    def end_task(self, backbone: Backbone, task: Task, past: Past) -> None:
        """Update after a task. The default does nothing."""

    def record(self) -> dict[str, Any]:
        """Return what the results tell about the last task, as JSON; nothing by default."""
        return {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return tensors that a checkpoint needs; none by default."""
        return {}

    def load(self, tensors: Tensors) -> None:
        """Restore what `tensors` returned."""
