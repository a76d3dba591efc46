"""What every method is: encodings and scores, hooks around learning, and what a checkpoint holds. No slots.

A method of one's own subclasses `Method`, or `everclip.methods.slots.SlotMethod` for the slots `trainable`, `replay`,
`penalties` and `merge`, and overrides what differs; the engine owns every loop, stream and cursor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch

from everclip.config import TrainingConfig
from everclip.contracts import (
    Batch,
    ClassEntry,
    Cost,
    Needs,
    Past,
    Phase,
    Progress,
    Source,
    Stream,
    Task,
    Validate,
)
from everclip.errors import ConfigError
from everclip.methods import merge
from everclip.methods.cost import Held, counted
from everclip.methods.frozen import cached_columns, rest
from everclip.methods.layer_decay import layered, scaled
from everclip.methods.pace import paced
from everclip.methods.predicting import Predicting
from everclip.methods.settings import MethodSettings, TaskTraining, TrainedSettings
from everclip.methods.trainable import decay_groups, trains
from everclip.models.backbone import Backbone
from everclip.models.modules.towers import SIDES
from everclip.training.buffer import Buffer

SCALE = "backbone.clip.logit_scale"
MAX_SCALE = 100.0
"""CLIP's bound on the logit scale (arXiv 2103.00020, section 2.5)."""

HOOKS = {
    "begin_task": "on_begin_task",
    "after_step": "on_step",
    "end_phase": "on_end_phase",
    "end_task": "on_end_task",
}
"""What the learner calls -> the hook in it that a method overrides."""


class Method(Predicting):
    """How to learn a task and how to predict.

    Hooks around learning are `on_begin_task`, `on_step`, `on_end_phase` and `on_end_task`: they do nothing here, so
    there is no `super()` to call.

    Args:
        backbone: the CLIP; the method owns it from here on.
        settings: an instance of `Settings`.
        seed: the run's seed.

    Class attributes:
        Settings: the pydantic model of the method's settings: only what the method uses.
        needs: what the method relies on, checked before a run starts.
        reads_embeddings: whether `forward` takes `image_embedding`, `text_embedding` and `class_embedding` in place of
            what a frozen tower would encode. A class with a `forward` of its own says so if it does.
        contrasts: whether its loss tells the texts of a step apart (a softmax over classes or captions), so that it
            cannot learn from one text. A class with a `forward` of its own says so if it does.
        gathers: whether `forward`, in phases without an optimiser, takes in the samples of all processes
            (`everclip.distributed.gather_rows`), so that each holds the same. Without it such phases take one process.

    Raises:
        ConfigError: where a subclass overrides a function of `HOOKS` in place of its hook.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    needs: ClassVar[Needs] = Needs()
    reads_embeddings: ClassVar[bool] = False
    contrasts: ClassVar[bool] = False
    gathers: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, hook in HOOKS.items():
            if name in vars(cls):
                raise ConfigError(
                    f"method: {cls.__name__}.{name} overrides what the learner calls; rename it to {hook}, and leave "
                    "out the call of super()."
                )
        if "forward" in vars(cls):
            cls.reads_embeddings = vars(cls).get("reads_embeddings", False)
            cls.contrasts = vars(cls).get("contrasts", False)

    def __init__(self, backbone: Backbone, settings: MethodSettings, seed: int = 0) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.seed = seed
        self.preset = type(self).__name__
        self.notes: dict[str, Any] = {}
        self.buffer: Buffer | None = None
        self.trainable: list[str] = []

    # -- what others ask before learning ----------------------------------------------------------------------

    @property
    def reference_needs(self) -> frozenset[str]:
        """Which reference data it cannot do without: of `images` and `texts`."""
        return self.needs.reference

    @property
    def sees_past(self) -> bool:
        """Whether a step compares a task's texts with those of earlier tasks, too."""
        return False

    @property
    def sees_base(self) -> bool:
        """Whether a step may hold the backbone's own training data."""
        return self.needs.all_tasks_at_once

    @property
    def replayed_share(self) -> float:
        """The share of a batch that replayed samples fill once there are some; 0 where it follows sizes."""
        return 0.0

    @property
    def chooses_on_validation(self) -> bool:
        """Whether the end of a task needs validation data."""
        return False

    @property
    def lr_scale(self) -> float:
        """The factor on `training.lr`."""
        return self.settings.lr_scale if isinstance(self.settings, TrainedSettings) else 1.0

    @property
    def per_task(self) -> Mapping[str, TaskTraining]:
        """Name of a task -> what differs in its training."""
        return self.settings.per_task if isinstance(self.settings, TrainedSettings) else {}

    def uses_labels(self, task: Task) -> bool:
        """Whether this task is learned from class names rather than from captions."""
        return task.classes is not None

    def compares_captions(self, task: Task) -> bool:
        """Whether this task is learned by a softmax over the captions of a batch."""
        return not self.uses_labels(task)

    def trains_nothing(self) -> bool:
        """Whether no parameter would train."""
        return self.describe().trainable_parameters == 0

    # -- learning ---------------------------------------------------------------------------------------------

    @final
    def begin_task(self, task: Task, past: Past) -> None:
        """Prepare for a task: the hook, then what trains and what the slots look back on."""
        self.on_begin_task(task, past)
        self.mark_trainable()
        self._begin_slots(task, past)

    def on_begin_task(self, task: Task, past: Past) -> None:
        """Hook: grow what the task needs, and name in `trainable` what trains."""

    def _begin_slots(self, task: Task, past: Past) -> None:
        """Prepare the slots, where a method has some."""

    def mark_trainable(self) -> None:
        """Let gradients flow to the parameters of `trainable`, and to no other."""
        chosen = set(self.trainable)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare what to train on: one phase over the task's samples; asked again and again, so without effects."""
        classes = task.classes if self.uses_labels(task) else None
        phase = self.phase("train", (Source(task.train),), classes, past.training, past)
        return [paced(phase, task, self.per_task)]

    def phase(
        self,
        name: str,
        sources: tuple[Source, ...],
        classes: tuple[ClassEntry, ...] | None,
        training: TrainingConfig | None,
        past: Past | None = None,
    ) -> Phase:
        """Return a phase that trains the parameters of `trainable` on one mixed stream called `main`.

        Args:
            name: of the phase.
            sources, classes: of the stream `main`; without classes it is learned from captions.
            training: batch size, cache and layer-wise rates; `None` takes defaults.
            past: where penalties find the scenario's reference data.
        """
        columns = ("image", "label") if classes else ("image", "tokens")
        batch_size = training.batch_size if training else 64
        frozen = [side for side in SIDES if self.reads_embeddings and not trains(self.trainable, side)]
        served, notes = cached_columns(columns, frozen, training)
        main = Stream(sources, batch_size, columns=served, classes=classes)
        decay = training.layer_decay if training else 1.0
        groups = layered(decay_groups(self.trainable, self), self.backbone.clip, decay, "backbone.clip.")
        return Phase(name, {"main": main}, scaled(groups, self.lr_scale), notes=tuple(notes.values()))

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """The training step: named losses whose sum is trained."""
        raise ConfigError(
            f"method: {type(self).__name__} has no loss: write `forward`, or subclass everclip.SlotMethod, which "
            "has one."
        )

    def teacher_of(self, kind: str) -> Backbone:
        """Return a frozen teacher by its name, on the method's device."""
        raise ConfigError(f"method: {self.preset} has no teacher {kind!r}.")

    def train(self, mode: bool = True) -> Method:
        """Set the mode; a tower of which nothing trains stays in evaluation mode, and so gives the same embeddings."""
        super().train(mode)
        rest(self.backbone)
        return self

    @final
    def after_step(self, progress: Progress) -> None:
        """Bound the logit scale, then let the slots and the hook follow an optimiser step."""
        if SCALE in self.trainable:  # what is frozen is left as it was: SigLIP's is larger
            self.backbone.bound_logit_scale(MAX_SCALE)
        self._step_slots(progress)
        self.on_step(progress)

    def _step_slots(self, progress: Progress) -> None:
        """Let the slots follow an optimiser step, where a method has some."""

    def on_step(self, progress: Progress) -> None:
        """Hook after each optimiser step: update running means and the like."""

    @final
    def end_phase(self, task: Task, phase: Phase) -> None:
        """Close a phase."""
        self.on_end_phase(task, phase)

    def on_end_phase(self, task: Task, phase: Phase) -> None:
        """Hook after a phase: solve, switch, discard."""

    @final
    def end_task(self, task: Task, past: Past, validate: Validate) -> None:
        """Close a task: the slots merge and store, then the hook."""
        self._end_slots(task, past, validate)
        self.on_end_task(task, past, validate)

    def _end_slots(self, task: Task, past: Past, validate: Validate) -> None:
        """Merge weights and store samples, where a method has the slots."""

    def store(self, task: Task, past: Past | None = None) -> None:
        """Show a task's samples to the buffer, where a method has one."""

    def on_end_task(self, task: Task, past: Past, validate: Validate) -> None:
        """Hook after a task: freeze, select, discard what only learning needed."""

    def weights(self) -> merge.Weights:
        """Return a copy of all that learning changes: trainable parameters and running statistics."""
        return self._snapshot()

    def blend(
        self, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], share: float
    ) -> None:
        """Put the weights at `share` of the way from `before` to `after`, both from `weights`."""
        self._put(merge.interpolate(before, after, share))

    def _changing(self) -> merge.Weights:
        """Return what learning changes, not copied."""
        return merge.changing(self, self.trainable)

    def _snapshot(self) -> merge.Weights:
        return {name: tensor.detach().clone() for name, tensor in self._changing().items()}

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        target = self._changing()
        for name, tensor in weights.items():
            target[name].copy_(tensor)

    # -- state ------------------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        """Return the grown shape as JSON; nothing grows here."""
        return {}

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Rebuild the shape that `structure` described, before tensors are loaded."""

    def extra_tensors(self) -> dict[str, torch.Tensor]:
        """Return tensors that a checkpoint needs besides parameters and buffers."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """Return JSON that a checkpoint needs besides tensors."""
        return {"notes": self.notes}

    def load_extra(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Take back what `extra_tensors` and `extra_state` returned."""
        self.notes = dict(state.get("notes", {}))

    def describe(self) -> Cost:
        """Count parameters and bytes from the module itself, and what the method keeps beside it."""
        trained = sum(self.get_parameter(name).numel() for name in self.trainable)
        growth = "none" if self.buffer is None else self.buffer.growth
        return counted(self, trained, growth)

    def held_in_task(self) -> Held:
        """Return what is held while a task is learned, and not now."""
        return Held()

    @property
    def teacher_parameters(self) -> int:
        """How many parameters frozen copies of the model hold now."""
        return 0
