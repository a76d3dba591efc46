"""The concrete `Method`: contrastive or class fine-tuning with the four slots trainable, replay, penalties, merge.

A method of one's own subclasses it and overrides what differs; the engine owns every loop, stream and cursor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

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
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.methods import merge
from everclip.methods.cost import counted
from everclip.methods.frozen import cached_columns, class_texts, embeddings, rest
from everclip.methods.layer_decay import layered, scaled
from everclip.methods.losses import class_cross_entropy, contrastive, sigmoid_contrastive
from everclip.methods.pace import paced
from everclip.methods.penalties.base import StepView
from everclip.methods.penalties.build import build as build_penalties
from everclip.methods.penalties.teachers import INITIAL, TASK_START, Teachers
from everclip.methods.predicting import Predicting
from everclip.methods.replayed import embed, memory_of, mixed
from everclip.methods.settings import MethodSettings
from everclip.methods.trainable import choose, decay_groups, grow, trains
from everclip.models.backbone import Backbone
from everclip.models.modules.towers import SIDES
from everclip.training.buffer import Buffer

SCALE = "backbone.clip.logit_scale"
MAX_SCALE = 100.0
"""CLIP's bound on the logit scale (arXiv 2103.00020, section 2.5)."""


class Method(Predicting):
    """How to learn a task and how to predict.

    Args:
        backbone: the CLIP; the method owns it from here on.
        settings: an instance of `Settings`.
        seed: the run's seed (decides what a buffer keeps).

    Class attributes:
        Settings: the pydantic model of the method's settings.
        needs: what the method relies on, checked before a run starts.
        reads_embeddings: whether `forward` takes `image_embedding`, `text_embedding` and `class_embedding` in place of
            what a frozen tower would encode. A subclass with a `forward` of its own says so if it does.
        contrasts: whether its loss tells the texts of a step apart (a softmax over classes or captions), so that it
            cannot learn from one text. A subclass with a `forward` of its own says so if it does.
        gathers: whether `forward`, in phases without an optimiser, takes in the samples of all processes
            (`everclip.distributed.gather_rows`), so that each holds the same. Without it such phases take one process.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    needs: ClassVar[Needs] = Needs()
    reads_embeddings: ClassVar[bool] = True
    contrasts: ClassVar[bool] = True
    gathers: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.reads_embeddings = vars(cls).get("reads_embeddings", False)
            cls.contrasts = vars(cls).get("contrasts", False)

    def __init__(self, backbone: Backbone, settings: MethodSettings, seed: int = 0) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.seed = seed
        self.preset = type(self).__name__
        self.notes: dict[str, Any] = {}
        self._penalties = build_penalties(settings.penalties)
        # Before anything grows in the backbone or trains: this is the start model.
        teaching = {p.teacher for p in self._penalties if p.uses_teacher}
        self._teachers = Teachers(backbone, teaching, self.settle_teacher)
        if settings.contrast == "sigmoid" and backbone.logit_bias is None:
            raise ConfigError(
                "method.contrast: `sigmoid` needs a model with a logit bias; this one has none."
            )
        grow(backbone, settings, seed)
        self._trainable = [f"backbone.clip.{n}" for n in choose(backbone.clip, settings.parts)]
        for penalty in self._penalties:
            penalty.prepare(backbone, self._trainable)
        self._anchors: dict[str, merge.Weights] = {}
        self._mean: merge.RunningMean | None = None
        replay = settings.replay
        self.buffer = (
            None if replay.kind == "none" else Buffer(replay.kind, replay.size, seed, replay.candidates)
        )

    @property
    def reference_needs(self) -> frozenset[str]:
        """Which reference data it cannot do without: of `images` and `texts`."""
        return self.needs.reference.union(*(p.needs_reference for p in self._penalties))

    @property
    def sees_past(self) -> bool:
        """Whether a step compares a task's texts with those of earlier tasks, too."""
        return self.buffer is not None and self.settings.replay.use != "distil"

    # -- learning ---------------------------------------------------------------------------------------------

    def begin_task(self, task: Task, past: Past) -> None:
        """Mark what trains, and keep the weights that penalties and merging look back on."""
        self.mark_trainable()
        self._open_buffer(task, past)
        keep = self.settings.merge
        looked_at = self._looked_back_on()
        if TASK_START in looked_at:
            self._anchors[TASK_START] = self._snapshot()
        if INITIAL in looked_at and INITIAL not in self._anchors:
            self._anchors[INITIAL] = self._snapshot()
        self._teachers.begin_task(self.backbone)
        for penalty in self._penalties:
            penalty.begin_task(self.backbone, task, past)
        if keep.kind == "running-mean":
            self._mean = merge.RunningMean(self._snapshot()) if keep.start == 0 else None

    def _looked_back_on(self) -> set[str]:
        """Whose weights must be kept: the model at the `task-start`, the `initial` one, both or none."""
        keep = self.settings.merge
        wanted = {p.settings.reference for p in self._penalties if p.uses_weights}
        # A teacher of the task's start is rebuilt from its weights after a resume.
        wanted |= {TASK_START} if self._teachers.needs_start else set()
        wanted |= {TASK_START} if keep.kind == "running-mean" and keep.wise_we < 1 else set()
        return wanted | ({keep.reference} if keep.kind == "wise-ft" else set())

    def mark_trainable(self) -> None:
        """Let gradients flow to the parameters of the slot `trainable`, and to no other."""
        chosen = set(self._trainable)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare one phase over the task's samples, mixed with the buffer's."""
        classes = task.classes if self.uses_labels(task) else None
        self._open_buffer(task, past)
        stored = None if self.buffer is None else self.buffer.rows(self._origins(past))
        mix = mixed(task, classes, stored, self.settings, past)
        phase = self.phase("train", mix.sources, mix.classes, past.training, past)
        streams = {**phase.streams, **memory_of(mix, phase.streams["main"].batch_size)}
        phase = replace(phase, streams=streams, stretch=mix.stretch, notes=(*phase.notes, *mix.notes))
        return [paced(phase, task, self.settings.per_task)]

    def phase(
        self,
        name: str,
        sources: tuple[Source, ...],
        classes: tuple[ClassEntry, ...] | None,
        training: TrainingConfig | None,
        past: Past | None = None,
    ) -> Phase:
        """Return a phase that trains the slot's parameters on one mixed stream called `main`.

        Args:
            name: of the phase.
            sources, classes: of the stream `main`; without classes it is learned from captions.
            training: batch size, cache and layer-wise rates; `None` takes defaults.
            past: where penalties find the scenario's reference data.
        """
        columns = ("image", "label") if classes else ("image", "tokens")
        batch_size = training.batch_size if training else 64
        main = Stream(sources, batch_size, columns=columns, classes=classes)
        frozen = [side for side in SIDES if self.reads_embeddings and not trains(self._trainable, side)]
        served, uncached = cached_columns(columns, frozen, training)
        streams = {"main": replace(main, columns=served)}
        for penalty in self._penalties:
            streams |= penalty.streams(main, past)
        decay = training.layer_decay if training else 1.0
        groups = layered(decay_groups(self._trainable, self), self.backbone.clip, decay, "backbone.clip.")
        notes = (*uncached.values(), *(note for penalty in self._penalties for note in penalty.notes))
        return Phase(name, streams, scaled(groups, self.settings.lr_scale), notes=notes)

    def uses_labels(self, task: Task) -> bool:
        """Whether this task is learned from class names rather than from captions."""
        return self.settings.loss == "labels" or (self.settings.loss == "auto" and task.classes is not None)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """The training step: named losses whose sum is trained."""
        columns = batch["main"]
        image = embeddings(self.backbone, "image", columns, "image")
        scale = self.backbone.logit_scale
        if "label" in columns:
            text = class_texts(self.backbone, columns)
            smoothing, same = self.settings.label_smoothing, columns.get("class_same")
            losses = {"labels": class_cross_entropy(image, text, columns["label"], scale, smoothing, same)}
        else:
            text = embeddings(self.backbone, "text", columns, "tokens")
            keys = columns["image_key"], columns["text_key"]
            bias = self.backbone.logit_bias
            if self.settings.contrast == "sigmoid" and bias is not None:
                losses = {"sigmoid": sigmoid_contrastive(image, text, scale, bias, *keys)}
            else:
                losses = {"contrastive": contrastive(image, text, scale, *keys)}
        return losses | self.penalise(batch, progress, image, text)

    def teacher_of(self, kind: str) -> Backbone:
        """Return a frozen teacher of the penalties, on the method's device."""
        return self._teachers.of(kind, self.backbone)

    def settle_teacher(self, teacher: Backbone) -> None:
        """Let a copy of the model at the task's start answer as the model did before it; in place.

        It is taken once `begin_task` made room for the task: a method that grew something which decides answers takes
        that away here. Nothing by default.
        """

    def train(self, mode: bool = True) -> Method:
        """Set the mode; a tower of which nothing trains stays in evaluation mode, and so gives the same embeddings."""
        super().train(mode)
        rest(self.backbone)
        return self

    def penalise(
        self, batch: Batch, progress: Progress, image: torch.Tensor, text: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the losses of the slot `penalties`, by name.

        Args:
            batch, progress: what `forward` was given.
            image, text: the student's embeddings of the stream `main`, with gradient.
        """
        if not self._penalties:
            return {}
        now = {name: self.get_parameter(name) for name in self._trainable}
        view = StepView(batch, progress, self.backbone, image, text, now, self._anchors, self._teachers)
        return {penalty.name: penalty.loss(view) for penalty in self._penalties}

    def after_step(self, progress: Progress) -> None:
        """Bound the logit scale; take a snapshot into the running mean where one is due."""
        if SCALE in self._trainable:  # what is frozen is left as it was: SigLIP's is larger
            self.backbone.bound_logit_scale(MAX_SCALE)
        keep = self.settings.merge
        late_enough = progress.step >= keep.start * progress.steps
        last = progress.step + 1 == progress.steps
        regular = progress.step % merge.every(keep.every, progress.steps) == 0
        due = (regular and late_enough) or (last and self._mean is None)
        if keep.kind != "running-mean" or not due:
            return
        if self._mean is None:
            self._mean = merge.RunningMean(self._snapshot())
        else:
            self._mean.add(self._snapshot(), self._anchors.get(TASK_START), keep.wise_we)

    def end_phase(self, task: Task, phase: Phase) -> None:
        """Nothing to do by default."""

    def end_task(self, task: Task, past: Past, validate: Validate) -> None:
        """Merge weights, then show the task's samples to the buffer."""
        keep = self.settings.merge
        if keep.kind == "wise-ft":
            self._interpolate(validate)
        elif keep.kind == "running-mean" and self._mean is not None:
            self._put(self._mean.mean)
            self._mean = None
        self._anchors.pop(TASK_START, None)
        self._teachers.end_task()
        for penalty in self._penalties:
            penalty.end_task(self.backbone, task, past)
        self.store(task, past)

    def store(self, task: Task, past: Past | None = None) -> None:
        """Show a task's samples to the buffer, if there is one."""
        if self.buffer is not None:
            workers = past.training.workers if past is not None and past.training is not None else 1
            self.buffer.offer(f"task {task.index}", task.train, lambda table: embed(self, table, workers))

    def _open_buffer(self, task: Task, past: Past) -> None:
        """Show the base to an empty buffer; again and again changes nothing, so that a plan knows of it too."""
        if self.buffer is None:
            return
        per = self.settings.replay.per
        if per == "class" or (per == "auto" and task.classes is not None):
            self.buffer.by_class()
        if self.settings.replay.base and self.buffer.seen == 0 and past.base is not None:
            self.buffer.offer("base", past.base)

    def _interpolate(self, validate: Validate) -> None:
        keep = self.settings.merge
        before, after = self._anchors[keep.reference], self._snapshot()

        def apply(alpha: float) -> None:
            self._put(merge.interpolate(before, after, alpha))

        if keep.alpha == "sweep":
            chosen, table = merge.sweep(keep.grid, apply, validate)
            self.notes["merge"] = {"alpha": chosen, "chosen_on": "validation", "sweep": table}
        else:
            apply(float(keep.alpha))
            self.notes["merge"] = {"alpha": float(keep.alpha)}

    def _origins(self, past: Past) -> Mapping[str, Table]:
        tables = {f"task {task.index}": task.train for task in past.tasks}
        return tables if past.base is None else {**tables, "base": past.base}

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
        return merge.changing(self, self._trainable)

    def _snapshot(self) -> merge.Weights:
        return {name: tensor.detach().clone() for name, tensor in self._changing().items()}

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        target = self._changing()
        for name, tensor in weights.items():
            target[name].copy_(tensor)

    # -- state ------------------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        """Return the grown shape as JSON; the base class never grows."""
        return {}

    def grow(self, structure: Mapping[str, Any]) -> None:
        """Rebuild the shape that `structure` described, before tensors are loaded."""

    def extra_tensors(self) -> dict[str, torch.Tensor]:
        """Return tensors that a checkpoint needs besides parameters and buffers."""
        extra = {f"anchor.{kind}.{n}": t for kind, w in self._anchors.items() for n, t in w.items()}
        if self._mean is not None:
            extra |= {f"mean.{name}": tensor for name, tensor in self._mean.mean.items()}
        for penalty in self._penalties:
            extra |= {f"penalty.{penalty.name}.{key}": tensor for key, tensor in penalty.tensors().items()}
        return extra

    def extra_state(self) -> dict[str, Any]:
        """Return JSON that a checkpoint needs besides tensors."""
        return {
            "buffer": None if self.buffer is None else self.buffer.state(),
            "mean_count": None if self._mean is None else self._mean.count,
            "start_model": self._teachers.fingerprints(),
            "notes": self.notes,
        }

    def load_extra(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Take back what `extra_tensors` and `extra_state` returned."""
        self._teachers.require(state.get("start_model", {}))
        self._anchors, mean = {}, {}
        kept: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "anchor":
                which, _, name = rest.partition(".")
                self._anchors.setdefault(which, {})[name] = tensor
            elif kind == "mean":
                mean[rest] = tensor
            elif kind == "penalty":
                which, _, name = rest.partition(".")
                kept.setdefault(which, {})[name] = tensor
        for penalty in self._penalties:
            penalty.load(kept.get(penalty.name, {}))
        if TASK_START in self._anchors:
            inside = {n.removeprefix("backbone."): t for n, t in self._anchors[TASK_START].items()}
            self._teachers.begin_task(self.backbone, inside)
        count = state.get("mean_count")
        self._mean = None if count is None else merge.RunningMean(mean, int(count))
        self.notes = dict(state.get("notes", {}))
        if self.buffer is not None and state.get("buffer") is not None:
            self.buffer.restore(state["buffer"])

    def describe(self) -> Cost:
        """Count parameters and bytes from the module itself, and what the slots keep beside it."""
        trained = sum(self.get_parameter(name).numel() for name in self._trainable)
        growth = "none" if self.buffer is None else self.buffer.growth
        return counted(self, trained, self._teachers.parameters(), growth)

    def teacher_size(self) -> int:
        """Return how many parameters a frozen copy of the task's start has."""
        return sum(parameter.numel() for parameter in self.backbone.parameters())
