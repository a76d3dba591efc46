"""`SlotMethod`: contrastive or class fine-tuning with the four slots trainable, replay, penalties and merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from everclip.config import TrainingConfig
from everclip.contracts import (
    Batch,
    ClassEntry,
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
from everclip.methods.base import Method
from everclip.methods.cost import Held
from everclip.methods.frozen import class_texts, embeddings
from everclip.methods.losses import class_cross_entropy, contrastive, sigmoid_contrastive
from everclip.methods.pace import paced
from everclip.methods.penalties.base import StepView
from everclip.methods.penalties.build import build as build_penalties
from everclip.methods.penalties.teachers import INITIAL, TASK_START, Teachers
from everclip.methods.replayed import memory_of, mixed
from everclip.methods.settings import MethodSettings, SlotSettings, SlotsWithoutReplay
from everclip.methods.trainable import choose, grow
from everclip.models.backbone import Backbone
from everclip.training.buffer import Buffer


class SlotMethod(Method):
    """A method whose parts are configuration: what trains, what is replayed, which losses hold it, what is merged.

    Args:
        backbone: the CLIP; the method owns it from here on.
        settings: an instance of `Settings`.
        seed: the run's seed (decides what a buffer keeps).
    """

    Settings: ClassVar[type[MethodSettings]] = SlotSettings
    reads_embeddings = True
    contrasts = True
    settings: SlotsWithoutReplay

    def __init__(self, backbone: Backbone, settings: SlotsWithoutReplay, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        self.penalties = build_penalties(settings.penalties)
        # Before anything grows in the backbone or trains: this is the start model.
        teaching = {p.teacher for p in self.penalties if p.uses_teacher}
        self.teachers = Teachers(backbone, teaching, self.settle_teacher)
        if settings.contrast == "sigmoid" and backbone.logit_bias is None:
            raise ConfigError(
                "method.contrast: `sigmoid` needs a model with a logit bias; this one has none."
            )
        grow(backbone, settings, seed)
        self.trainable = [f"backbone.clip.{n}" for n in choose(backbone.clip, settings.parts)]
        for penalty in self.penalties:
            penalty.prepare(backbone, self.trainable)
        self._anchors: dict[str, merge.Weights] = {}
        self._mean: merge.RunningMean | None = None
        replay = settings.replaying
        if replay.kind != "none":
            self.buffer = Buffer(replay.kind, replay.size, seed, replay.candidates)

    # -- what others ask before learning ----------------------------------------------------------------------

    @property
    def reference_needs(self) -> frozenset[str]:
        """Which reference data it cannot do without: of `images` and `texts`."""
        return self.needs.reference.union(*(p.needs_reference for p in self.penalties))

    @property
    def sees_past(self) -> bool:
        """Whether a step compares a task's texts with those of earlier tasks, too."""
        return self.buffer is not None and self.settings.replaying.use != "distil"

    @property
    def sees_base(self) -> bool:
        """Whether a step may hold the backbone's own training data."""
        return super().sees_base or self.settings.replaying.base

    @property
    def replayed_share(self) -> float:
        """The share of a batch that replayed samples fill once there are some; 0 where it follows sizes."""
        return 0.0 if self.buffer is None else self.settings.replaying.share or 0.0

    @property
    def chooses_on_validation(self) -> bool:
        """Whether the end of a task needs validation data."""
        return self.settings.merge.kind == "wise-ft" and self.settings.merge.alpha == "sweep"

    def uses_labels(self, task: Task) -> bool:
        """Whether this task is learned from class names rather than from captions."""
        return self.settings.loss == "labels" or (self.settings.loss == "auto" and task.classes is not None)

    def compares_captions(self, task: Task) -> bool:
        """Whether this task is learned by a softmax over the captions of a batch."""
        return self.settings.contrast == "softmax" and not self.uses_labels(task)

    def trains_nothing(self) -> bool:
        """Whether no parameter would train."""
        return not self.settings.trainable and super().trains_nothing()

    # -- learning ---------------------------------------------------------------------------------------------

    def _begin_slots(self, task: Task, past: Past) -> None:
        """Keep the weights that penalties and merging look back on."""
        self._open_buffer(task, past)
        keep = self.settings.merge
        looked_at = self._looked_back_on()
        if TASK_START in looked_at:
            self._anchors[TASK_START] = self._snapshot()
        if INITIAL in looked_at and INITIAL not in self._anchors:
            self._anchors[INITIAL] = self._snapshot()
        self.teachers.begin_task(self.backbone)
        for penalty in self.penalties:
            penalty.begin_task(self.backbone, task, past)
        if keep.kind == "running-mean":
            self._mean = merge.RunningMean(self._snapshot()) if keep.start == 0 else None

    def _looked_back_on(self) -> set[str]:
        """Whose weights must be kept: the model at the `task-start`, the `initial` one, both or none."""
        keep = self.settings.merge
        wanted = {p.settings.reference for p in self.penalties if p.uses_weights}
        # A teacher of the task's start is rebuilt from its weights after a resume.
        wanted |= {TASK_START} if self.teachers.needs_start else set()
        wanted |= {TASK_START} if keep.kind == "running-mean" and keep.wise_we < 1 else set()
        return wanted | ({keep.reference} if keep.kind == "wise-ft" else set())

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare one phase over the task's samples, mixed with the buffer's."""
        classes = task.classes if self.uses_labels(task) else None
        self._open_buffer(task, past)
        stored = None if self.buffer is None else self.buffer.rows(self._origins(past))
        mix = mixed(task, classes, stored, self.settings, past)
        phase = self.phase("train", mix.sources, mix.classes, past.training, past)
        streams = {**phase.streams, **memory_of(mix, phase.streams["main"].batch_size)}
        phase = replace(phase, streams=streams, stretch=mix.stretch, notes=(*phase.notes, *mix.notes))
        return [paced(phase, task, self.per_task)]

    def phase(
        self,
        name: str,
        sources: tuple[Source, ...],
        classes: tuple[ClassEntry, ...] | None,
        training: TrainingConfig | None,
        past: Past | None = None,
    ) -> Phase:
        """Return a phase on one mixed stream called `main`, with the streams of the penalties (see `Method.phase`)."""
        phase = super().phase(name, sources, classes, training, past)
        columns = ("image", "label") if classes else ("image", "tokens")
        main = replace(phase.streams["main"], columns=columns)  # penalties see pictures, whatever is cached
        streams = dict[str, Stream](phase.streams)
        for penalty in self.penalties:
            streams |= penalty.streams(main, past)
        notes = (*phase.notes, *(note for penalty in self.penalties for note in penalty.notes))
        return replace(phase, streams=streams, notes=notes)

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
        return self.teachers.of(kind, self.backbone)

    def settle_teacher(self, teacher: Backbone) -> None:
        """Let a copy of the model at the task's start answer as the model did before it; in place.

        It is taken once `begin_task` made room for the task: a method that grew something which decides answers takes
        that away here. Nothing by default.
        """

    def penalise(
        self, batch: Batch, progress: Progress, image: torch.Tensor, text: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the losses of the slot `penalties`, by name.

        Args:
            batch, progress: what `forward` was given.
            image, text: the student's embeddings of the stream `main`, with gradient.
        """
        if not self.penalties:
            return {}
        now = {name: self.get_parameter(name) for name in self.trainable}
        view = StepView(batch, progress, self.backbone, image, text, now, self._anchors, self.teachers)
        return {penalty.name: penalty.loss(view) for penalty in self.penalties}

    def _step_slots(self, progress: Progress) -> None:
        """Take a snapshot into the running mean where one is due."""
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

    def _end_slots(self, task: Task, past: Past, validate: Validate) -> None:
        """Merge weights, then show the task's samples to the buffer."""
        keep = self.settings.merge
        if keep.kind == "wise-ft":
            self._interpolate(validate)
        elif keep.kind == "running-mean" and self._mean is not None:
            self._put(self._mean.mean)
            self._mean = None
        self._anchors.pop(TASK_START, None)
        self.teachers.end_task()
        for penalty in self.penalties:
            penalty.end_task(self.backbone, task, past)
        self.store(task, past)

    def store(self, task: Task, past: Past | None = None) -> None:
        """Show a task's samples to the buffer, if there is one."""
        if self.buffer is not None:
            self.buffer.offer(f"task {task.index}", task.train, None if past is None else past.embed)

    def _open_buffer(self, task: Task, past: Past) -> None:
        """Show the base to an empty buffer; again and again changes nothing, so that a plan knows of it too."""
        if self.buffer is None:
            return
        per = self.settings.replaying.per
        if per == "class" or (per == "auto" and task.classes is not None):
            self.buffer.by_class()
        if self.settings.replaying.base and self.buffer.seen == 0 and past.base is not None:
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

    # -- state ------------------------------------------------------------------------------------------------

    def extra_tensors(self) -> dict[str, torch.Tensor]:
        """Return tensors that a checkpoint needs besides parameters and buffers."""
        extra = {f"anchor.{kind}.{n}": t for kind, w in self._anchors.items() for n, t in w.items()}
        if self._mean is not None:
            extra |= {f"mean.{name}": tensor for name, tensor in self._mean.mean.items()}
        for penalty in self.penalties:
            extra |= {f"penalty.{penalty.name}.{key}": tensor for key, tensor in penalty.tensors().items()}
        return extra

    def extra_state(self) -> dict[str, Any]:
        """Return JSON that a checkpoint needs besides tensors."""
        return {
            "buffer": None if self.buffer is None else self.buffer.state(),
            "mean_count": None if self._mean is None else self._mean.count,
            "start_model": self.teachers.fingerprints(),
        } | super().extra_state()

    def load_extra(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Take back what `extra_tensors` and `extra_state` returned."""
        super().load_extra(tensors, state)
        self.teachers.require(state.get("start_model", {}))
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
        for penalty in self.penalties:
            penalty.load(kept.get(penalty.name, {}))
        if TASK_START in self._anchors:
            inside = {n.removeprefix("backbone."): t for n, t in self._anchors[TASK_START].items()}
            self.teachers.begin_task(self.backbone, inside)
        count = state.get("mean_count")
        self._mean = None if count is None else merge.RunningMean(mean, int(count))
        if self.buffer is not None and state.get("buffer") is not None:
            self.buffer.restore(state["buffer"])

    def held_in_task(self) -> Held:
        """Return what is held while a task is learned, and not now: teachers, weights as they were, their mean."""
        copies = {f"a frozen copy ({kind})": self.teacher_size() for kind in self.teachers.missing()}
        own = sum(tensor.numel() for tensor in self._changing().values())
        wanted = sorted(self._looked_back_on() - self._anchors.keys())
        tensors = {f"the weights that change, as they were ({kind})": own for kind in wanted}
        if self.settings.merge.kind == "running-mean" and self._mean is None:
            tensors["their running mean"] = own
        asked = any(penalty.uses_teacher for penalty in self.penalties)
        texts = ("an embedding of each text that a teacher is asked about",) if asked else ()
        return Held(copies, tensors, texts)

    @property
    def teacher_parameters(self) -> int:
        """How many parameters frozen copies of the model hold now."""
        return self.teachers.parameters()

    def teacher_size(self) -> int:
        """Return how many parameters a frozen copy of the task's start has."""
        return sum(parameter.numel() for parameter in self.backbone.parameters())
