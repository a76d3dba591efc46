"""The base class of all methods: encodings and scores, hooks around learning, and the state of a checkpoint. No slots.

Your own method subclasses `Method`, or `everclip.methods.slots.SlotMethod` for the slots `trainable`, `replay`,
`penalties` and `merge`. The engine owns every loop, stream and position.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
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
from everclip.errors import ConfigError, did_you_mean
from everclip.methods import merge
from everclip.methods.cost import TaskMemory, count_cost
from everclip.methods.frozen import cached_columns, eval_frozen_towers
from everclip.methods.layer_decay import scaled, with_layer_decay
from everclip.methods.predicting import Predicting
from everclip.methods.settings import MethodSettings, TaskTraining, TrainedSettings
from everclip.methods.task_training import with_task_training
from everclip.methods.trainable import decay_groups, trains
from everclip.models.backbone import Backbone
from everclip.models.modules.towers import SIDES
from everclip.models.parameters import parameters_of
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
"""Function that the learner calls -> the hook that a method overrides instead."""

RENAMED = {
    "_trainable": "trainable",
    "held_in_task": "task_memory",
    "settle_teacher": "prepare_teacher",
}
"""Old name -> new name of what a method sets or overrides; under the old name it would have no effect."""


def _refuse_without_effect(cls: type) -> None:
    """Refuse functions of a subclass that nothing calls.

    Raises:
        ConfigError: with the name to use instead.
    """
    for name, hook in HOOKS.items():
        if name in vars(cls):
            raise ConfigError(
                f"method: {cls.__name__}.{name} overrides a function that the learner calls; rename it to {hook}, "
                "without the call of super()."
            )
    _refuse_renamed(cls.__name__, vars(cls))
    for name in vars(cls):
        if name.startswith("on_") and name not in HOOKS.values():
            raise ConfigError(
                f"method: {cls.__name__}.{name} is not a hook, so nothing calls it."
                f"{did_you_mean(name, HOOKS.values())} If it is a function of your own, start its name with `_`."
            )


def _refuse_renamed(kind: str, given: Container[str]) -> None:
    for old, new in RENAMED.items():
        if old in given:
            raise ConfigError(f"method: {kind}.{old} has no effect; it is called {new} now. Rename it.")


class Method(Predicting):
    """How to learn a task and how to predict.

    The hooks `on_begin_task`, `on_step`, `on_end_phase` and `on_end_task` do nothing here, so you never call `super()`.

    Args:
        backbone: the CLIP; it belongs to the method from now on.
        settings: an instance of `Settings`.
        seed: the run's seed.

    Class attributes:
        Settings: the pydantic model of the method's settings, with only those that the method uses.
        needs: the requirements of the method, checked before a run starts.
        reads_embeddings: whether `forward` accepts `image_embedding`, `text_embedding` and `class_embedding` in place
            of the input of a frozen tower. A class that overrides `forward` must set it again.
        contrasts: whether its loss compares the texts of a step (a softmax over classes or captions), so that it
            cannot learn from one text. A class that overrides `forward` must set it again.
        in_chunks: whether `forward` allows `training.chunk`: what a tower computes for a sample depends on its input
            and on the weights only, also when it is computed again during the backward pass. A class that overrides
            `forward` must set it again.
        gathers: whether `forward`, in phases without an optimiser, gathers the samples of all processes
            (`everclip.distributed.gather_rows`), so that all have the same state. Otherwise such phases need a single
            process.

    Raises:
        ConfigError: if a subclass overrides a function of `HOOKS` instead of its hook, or has a function that
            nothing calls: an unknown `on_...`, or an old name of `RENAMED`.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    needs: ClassVar[Needs] = Needs()
    reads_embeddings: ClassVar[bool] = False
    contrasts: ClassVar[bool] = False
    in_chunks: ClassVar[bool] = False
    gathers: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_without_effect(cls)
        if "forward" in vars(cls):
            cls.reads_embeddings = vars(cls).get("reads_embeddings", False)
            cls.contrasts = vars(cls).get("contrasts", False)
            cls.in_chunks = vars(cls).get("in_chunks", False)

    def __init__(self, backbone: Backbone, settings: MethodSettings, seed: int = 0) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.seed = seed
        self.preset = type(self).__name__
        self.notes: dict[str, Any] = {}
        self.buffer: Buffer | None = None
        self.trainable: list[str] = []

    # -- questions before learning ----------------------------------------------------------------------------

    @property
    def reference_needs(self) -> frozenset[str]:
        """The reference data that it needs: any of `images` and `texts`."""
        return self.needs.reference

    @property
    def sees_past(self) -> bool:
        """Whether a step also compares a task's texts with those of earlier tasks."""
        return False

    @property
    def sees_base(self) -> bool:
        """Whether a step may hold the backbone's own training data."""
        return self.needs.all_tasks_at_once

    @property
    def replayed_share(self) -> float:
        """The share of replayed samples in a batch once there are some; 0 if it depends on the sizes."""
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
        """Name of a task -> its own training settings."""
        return self.settings.per_task if isinstance(self.settings, TrainedSettings) else {}

    def uses_labels(self, task: Task) -> bool:
        """Return whether this task is learned from class names rather than from captions."""
        return task.classes is not None

    def compares_captions(self, task: Task) -> bool:
        """Return whether this task is learned by a softmax over the captions of a batch."""
        return not self.uses_labels(task)

    def check_task(self, task: Task) -> None:
        """Check that a task has the data that the method needs. A run checks all of its tasks before the first."""

    def trains_nothing(self) -> bool:
        """Return whether no parameter trains."""
        return self.describe().trainable_parameters == 0

    # -- learning ---------------------------------------------------------------------------------------------

    @final
    def begin_task(self, task: Task, past: Past) -> None:
        """Prepare for a task: run the hook, grow the slots, mark the trainable parameters, prepare the slots."""
        self.on_begin_task(task, past)
        self._grow_slots()
        self.mark_trainable()
        self._begin_slots(task, past)

    def on_begin_task(self, task: Task, past: Past) -> None:
        """Hook: grow modules for the task, and name the parameters that train in `trainable`."""

    def _grow_slots(self) -> None:
        """Create the modules of the slots, and add them to `trainable`, if the method has any."""

    def _begin_slots(self, task: Task, past: Past) -> None:
        """Prepare the slots, if the method has any."""

    def mark_trainable(self) -> None:
        """Require gradients of the parameters in `trainable`, and of no others.

        Raises:
            ConfigError: if a method sets `trainable` under its old name, or names a parameter that it does not have.
        """
        kind = type(self).__name__
        _refuse_renamed(kind, vars(self))
        chosen, known = set(self.trainable), dict(self.named_parameters())
        if missing := sorted(chosen - known.keys()):
            raise ConfigError(
                f"method: {kind}.trainable names {missing[0]!r}, which is not a parameter of it."
                f"{did_you_mean(missing[0], known)} The names are those of self.named_parameters()."
            )
        for name, parameter in known.items():
            parameter.requires_grad_(name in chosen)

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare what to train on: one phase over the task's samples. Called repeatedly, so it has no side effects."""
        classes = task.classes if self.uses_labels(task) else None
        phase = self.phase("train", (Source(task.train),), classes, past.training, past)
        return [with_task_training(phase, task, self.per_task)]

    @final
    def plan(self, task: Task, past: Past) -> list[Phase]:
        """Return the phases of a task: the method's own, then those of its slots. It has no side effects."""
        phases = self.phases(task, past)
        return [*phases, *self._slot_phases(phases)]

    def _slot_phases(self, phases: Sequence[Phase]) -> list[Phase]:
        """Return the phases that the slots add, if the method has any."""
        return []

    def phase(
        self,
        name: str,
        sources: tuple[Source, ...],
        classes: tuple[ClassEntry, ...] | None,
        training: TrainingConfig | None,
        past: Past | None = None,
    ) -> Phase:
        """Return a phase that trains the parameters of `trainable` on one mixed stream, `main`.

        Args:
            name: of the phase.
            sources, classes: of the stream `main`; without classes it is learned from captions.
            training: batch size, cache and layer-wise rates; `None`: defaults.
            past: holds the scenario's reference data for penalties.
        """
        columns = ("image", "label") if classes else ("image", "tokens")
        batch_size = training.batch_size if training else 64
        frozen = [side for side in SIDES if self.reads_embeddings and not trains(self.trainable, side)]
        served, notes = cached_columns(columns, frozen, training)
        main = Stream(sources, batch_size, columns=served, classes=classes)
        decay = training.layer_decay if training else 1.0
        groups = with_layer_decay(
            decay_groups(self.trainable, self), self.backbone.clip, decay, "backbone.clip."
        )
        return Phase(name, {"main": main}, scaled(groups, self.lr_scale), notes=tuple(notes.values()))

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Return the named losses of a training step; their sum is minimised."""
        raise ConfigError(
            f"method: {type(self).__name__} has no loss: write `forward`, or subclass everclip.SlotMethod, which "
            "has one."
        )

    def teacher_of(self, kind: str) -> Backbone:
        """Return a frozen teacher by its name, on the method's device."""
        raise ConfigError(f"method: {self.preset} has no teacher {kind!r}.")

    def train(self, mode: bool = True) -> Method:
        """Set the mode. Frozen towers stay in evaluation mode, so that their embeddings do not change."""
        super().train(mode)
        eval_frozen_towers(self.backbone)
        return self

    @final
    def after_step(self, progress: Progress) -> None:
        """Bound the logit scale, update the slots, then run the hook."""
        if SCALE in self.trainable:  # a frozen scale may be larger: SigLIP's is
            self.backbone.bound_logit_scale(MAX_SCALE)
        self._step_slots(progress)
        self.on_step(progress)

    def _step_slots(self, progress: Progress) -> None:
        """Update the slots after an optimiser step, if the method has any."""

    @final
    def take_gradients(self, progress: Progress) -> None:
        """Give the slots the gradients of a batch in a phase that only measures them, then release them."""
        self._measure_slots(progress)
        self.zero_grad(set_to_none=True)

    def _measure_slots(self, progress: Progress) -> None:
        """Read the gradients of a measuring phase, if the method has slots that need them."""

    def on_step(self, progress: Progress) -> None:
        """Hook after each optimiser step: update running means and the like."""

    @final
    def end_phase(self, task: Task, phase: Phase) -> None:
        """End a phase."""
        self.on_end_phase(task, phase)

    def on_end_phase(self, task: Task, phase: Phase) -> None:
        """Hook after a phase: solve, switch, discard."""

    @final
    def end_task(self, task: Task, past: Past, validate: Validate) -> None:
        """End a task: merge weights and store samples, then run the hook."""
        self._end_slots(task, past, validate)
        self.on_end_task(task, past, validate)

    def _end_slots(self, task: Task, past: Past, validate: Validate) -> None:
        """Merge weights and store samples, if the method has the slots."""

    def store(self, task: Task, past: Past | None = None) -> None:
        """Offer a task's samples to the buffer, if the method has one."""

    def on_end_task(self, task: Task, past: Past, validate: Validate) -> None:
        """Hook after a task: freeze, select, or discard what only training needs."""

    def weights(self) -> merge.Weights:
        """Return a copy of everything that learning changes: trainable parameters and running statistics."""
        return self._snapshot()

    def blend(
        self, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], share: float
    ) -> None:
        """Set the weights to `(1 - share) * before + share * after`, both from `weights`."""
        self._put(merge.interpolate(before, after, share))

    def _changing(self) -> merge.Weights:
        """Return the tensors that learning changes, not copied."""
        return merge.changing(self, self.trainable)

    def _snapshot(self) -> merge.Weights:
        return {name: tensor.detach().clone() for name, tensor in self._changing().items()}

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        target = self._changing()
        for name, tensor in weights.items():
            target[name].copy_(tensor)

    # -- state ------------------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        """Return the grown shape as JSON; empty, because nothing grows here."""
        return {}

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Rebuild the shape that `structure` described, before tensors are loaded."""

    def slot_structure(self) -> dict[str, Any]:
        """Return the shape of what the slots have grown, as JSON; empty without slots."""
        return {}

    def grow_slots(self, structure: Mapping[str, Any]) -> None:
        """Rebuild what `slot_structure` described, before tensors are loaded."""

    def extra_tensors(self) -> dict[str, torch.Tensor]:
        """Return tensors that a checkpoint needs besides parameters and buffers."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """Return JSON that a checkpoint needs besides tensors."""
        return {"notes": self.notes}

    def load_extra(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Restore what `extra_tensors` and `extra_state` returned."""
        self.notes = dict(state.get("notes", {}))

    def describe(self) -> Cost:
        """Count parameters and bytes of the module and of what the method stores beside it."""
        trained = sum(p.numel() for p in parameters_of(self, self.trainable).values())
        growth = "none" if self.buffer is None else self.buffer.growth
        return count_cost(self, trained, growth)

    def task_memory(self) -> TaskMemory:
        """Return what the method needs only while it learns a task, as far as it does not exist now."""
        return TaskMemory()

    @property
    def teacher_parameters(self) -> int:
        """The number of parameters of the frozen copies of the model now."""
        return 0
