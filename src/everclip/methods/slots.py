"""`SlotMethod`: contrastive or class fine-tuning with the four slots `trainable`, `replay`, `penalties` and `merge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from everclip.config import TrainingConfig
from everclip.contracts import (
    Batch,
    ClassEntry,
    Cost,
    Past,
    Phase,
    Progress,
    Source,
    Stream,
    Task,
    Validate,
)
from everclip.data.sampling.order import key_of
from everclip.errors import ConfigError
from everclip.methods import merge
from everclip.methods.base import Method
from everclip.methods.cost import TaskMemory
from everclip.methods.frozen import class_texts, embeddings
from everclip.methods.gradient_pass import MEASURE, measure, measuring_phases
from everclip.methods.losses import class_cross_entropy, contrastive, sigmoid_contrastive
from everclip.methods.penalties.base import StepView
from everclip.methods.penalties.build import build as build_penalties
from everclip.methods.penalties.teachers import INITIAL, TASK_START, Teachers
from everclip.methods.replayed import memory_streams, mix, open_buffer, stored_rows, with_memory
from everclip.methods.settings import MethodSettings, SlotSettings, SlotsWithoutReplay
from everclip.methods.task_training import with_task_training
from everclip.methods.trainable import choose, grow
from everclip.models.backbone import Backbone
from everclip.models.parameters import parameters_of
from everclip.scenarios.base import merge_entries
from everclip.training.buffer import Buffer

PENALTY_MODULES = "penalty_modules."
"""The prefix of parameters that train only for penalties; predictions do not use them."""


class SlotMethod(Method):
    """A method made of slots: trainable parts, replay, penalties and merging are settings.

    Args:
        backbone: the CLIP; it belongs to the method from now on.
        settings: an instance of `Settings`.
        seed: the run's seed (decides which samples a buffer stores).
    """

    Settings: ClassVar[type[MethodSettings]] = SlotSettings
    reads_embeddings = True
    contrasts = True
    in_chunks = True
    settings: SlotsWithoutReplay

    def __init__(self, backbone: Backbone, settings: SlotsWithoutReplay, seed: int = 0) -> None:
        super().__init__(backbone, settings, seed)
        self.penalties = build_penalties(settings.penalties)
        # The backbone is still the start model: nothing has grown or trained.
        teaching = {p.teacher for p in self.penalties if p.uses_teacher}
        self.teachers = Teachers(backbone, teaching, self.prepare_teacher)
        if settings.contrast == "sigmoid" and backbone.logit_bias is None:
            raise ConfigError(
                "method.contrast: `sigmoid` needs a model with a logit bias; this one has none."
            )
        grow(backbone, settings, seed)
        self.trainable = [f"backbone.clip.{n}" for n in choose(backbone.clip, settings.parts)]
        for penalty in self.penalties:
            penalty.prepare(backbone, self.trainable)
        self.penalty_modules = nn.ModuleDict()
        self._anchors: dict[str, merge.Weights] = {}
        self._mean: merge.RunningMean | None = None
        replay = settings.replaying
        if replay.kind != "none":
            self.buffer = Buffer(replay.kind, replay.size, seed, replay.candidates, replay.times)

    # -- questions before learning ----------------------------------------------------------------------------

    @property
    def reference_needs(self) -> frozenset[str]:
        """The reference data that it needs: any of `images` and `texts`."""
        return self.needs.reference.union(*(p.needs_reference for p in self.penalties))

    @property
    def sees_past(self) -> bool:
        """Whether a step also compares a task's texts with those of earlier tasks."""
        return self.buffer is not None and self.settings.replaying.use != "distil"

    @property
    def sees_base(self) -> bool:
        """Whether a step may hold the backbone's own training data."""
        return super().sees_base or self.settings.replaying.base

    @property
    def replayed_share(self) -> float:
        """The share of replayed samples in a batch once there are some; 0 if it depends on the sizes."""
        return 0.0 if self.buffer is None else self.settings.replaying.share or 0.0

    @property
    def chooses_on_validation(self) -> bool:
        """Whether the end of a task needs validation data."""
        return self.settings.merge.kind == "wise-ft" and self.settings.merge.alpha == "sweep"

    def uses_labels(self, task: Task) -> bool:
        """Return whether this task is learned from class names rather than from captions."""
        return self.settings.loss == "labels" or (self.settings.loss == "auto" and task.classes is not None)

    def compares_captions(self, task: Task) -> bool:
        """Return whether this task is learned by a softmax over the captions of a batch."""
        return self.settings.contrast == "softmax" and not self.uses_labels(task)

    def check_task(self, task: Task) -> None:
        """Check that a task has the data that the penalties need."""
        classes = task.classes if self.uses_labels(task) else None
        for penalty in self.penalties:
            penalty.check_task(task.train, classes)

    def trains_nothing(self) -> bool:
        """Return whether no parameter trains."""
        return not self.settings.trainable and super().trains_nothing()

    # -- learning ---------------------------------------------------------------------------------------------

    def _grow_slots(self) -> None:
        """Create the modules of the penalties, and add them to `trainable`."""
        self.grow_slots({penalty.name: penalty.shapes() for penalty in self.penalties})
        new = [n for n, _ in self.named_parameters() if n.startswith(PENALTY_MODULES)]
        self.trainable = [*self.trainable, *(n for n in new if n not in self.trainable)]

    def _begin_slots(self, task: Task, past: Past) -> None:
        """Store the weights that penalties and merging refer to."""
        if self.buffer is not None:
            open_buffer(self.buffer, self.settings.replaying, task, past)
        merging = self.settings.merge
        references = self._references()
        if INITIAL in references and INITIAL not in self._anchors:
            self._anchors[INITIAL] = self._model()
        if self.settings.starting == "initial":
            self._put(self._anchors[INITIAL])
        elif self.settings.starting == "random":
            self.backbone.draw_weights(key_of("restart", self.seed, task.index))
        if TASK_START in references:
            self._anchors[TASK_START] = self._model()
        self.teachers.begin_task(self.backbone)
        for penalty in self.penalties:
            penalty.begin_task(self.backbone, task, past)
        if merging.kind == "running-mean":
            self._mean = merge.RunningMean(self._model()) if merging.start == 0 else None

    def _model(self) -> merge.Weights:
        """Return a copy of the weights that learning changes and that predictions use."""
        return {n: t for n, t in self._snapshot().items() if not n.startswith(PENALTY_MODULES)}

    def _references(self) -> set[str]:
        """Return the models whose weights must be stored: at the `task-start`, the `initial` one, both or none."""
        merging = self.settings.merge
        references = {p.settings.reference for p in self.penalties if p.uses_weights}
        # After a resume, the teacher of the task's start is rebuilt from its weights.
        references |= {TASK_START} if self.teachers.needs_start else set()
        references |= {INITIAL} if self.settings.starting == "initial" else set()
        references |= {TASK_START} if merging.kind == "running-mean" and merging.wise_we < 1 else set()
        return references | ({merging.reference} if merging.kind == "wise-ft" else set())

    def phases(self, task: Task, past: Past) -> list[Phase]:
        """Declare one phase over the task's samples, mixed with the buffer's."""
        if task.once:
            return [self._phase_once(task, past)]
        classes = task.classes if self.uses_labels(task) else None
        buffer = self.buffer
        stored = () if buffer is None else stored_rows(buffer, self.settings.replaying, task, past)
        data = mix(task, classes, stored, self.settings, past)
        phase = self.phase("train", data.sources, data.classes, past.training, past)
        streams = {**phase.streams, **memory_streams(data, phase.streams["main"].batch_size)}
        budgets = 1.0 + len(past.tasks) if self.settings.budgets == "cumulative" else 1.0
        notes = (*phase.notes, *data.notes)
        phase = replace(phase, streams=streams, stretch=data.stretch, budgets=budgets, notes=notes)
        return [with_task_training(phase, task, self.per_task)]

    def _slot_phases(self, phases: Sequence[Phase]) -> list[Phase]:
        """Return the pass over the task that measures gradients, if a penalty needs it."""
        names = [name for name in self.trainable if not name.startswith(PENALTY_MODULES)]
        return measuring_phases(self.penalties, phases, names)

    def _measure_slots(self, progress: Progress) -> None:
        """Give the gradients to the penalties that need them."""
        measure(self.penalties, self, progress)

    def _phase_once(self, task: Task, past: Past) -> Phase:
        """Return the phase of a stream that is seen once; a buffer is filled batch by batch, without borders."""
        classes = task.classes if self.uses_labels(task) else None
        earlier = merge_entries([entry for t in past.tasks for entry in t.classes or ()]) if classes else ()
        if self.buffer is not None and classes:
            classes = merge_entries([*earlier, *classes])
        phase = self.phase("train", (Source(task.train),), classes, past.training, past)
        if self.buffer is not None:
            main = replace(phase.streams["main"], known=len(earlier))
            main = with_memory(main, task, self.buffer, past, self.settings.replaying)
            phase = replace(phase, streams={**phase.streams, "main": main})
        return with_task_training(phase, task, self.per_task)

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
        main = replace(
            phase.streams["main"], columns=columns
        )  # penalties get images, even with cached embeddings
        streams = dict[str, Stream](phase.streams)
        for penalty in self.penalties:
            streams |= penalty.streams(main, past)
            first = streams["main"]
            further = tuple(c for c in penalty.main_columns if c not in first.columns)
            streams["main"] = replace(first, columns=(*first.columns, *further))
        notes = (*phase.notes, *(note for penalty in self.penalties for note in penalty.notes))
        return replace(phase, streams=streams, notes=notes)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        """Return the named losses of a training step; their sum is minimised."""
        columns = batch["main"]
        image = embeddings(self.backbone, "image", columns, "image")
        scale = self.backbone.logit_scale
        if "label" in columns:
            text = class_texts(self.backbone, columns)
            smoothing, same = self.settings.label_smoothing, columns.get("class_same")
            loss = class_cross_entropy(image, text, columns["label"], scale, smoothing, same)
            losses = {"labels": loss * columns.get("weight", 1)}
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

    def prepare_teacher(self, teacher: Backbone) -> None:
        """Make a copy of the model at the task's start predict as the model did before the task, in place.

        The copy is made after `on_begin_task`. A method that grew modules there which change predictions must undo
        their effect here. The default does nothing.
        """

    def penalise(
        self, batch: Batch, progress: Progress, image: torch.Tensor, text: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the losses of the slot `penalties`, by name.

        Args:
            batch: as `forward` has it.
            progress: as `forward` has it.
            image: the student's image embeddings of the stream `main`, with gradient.
            text: its text embeddings.
        """
        if not self.penalties or progress.phase == MEASURE:
            return {}
        now = parameters_of(self, self.trainable)
        view = StepView(batch, progress, self.backbone, image, text, now, self._anchors, self.teachers)
        return {penalty.name: penalty.loss(view) for penalty in self.penalties}

    def _step_slots(self, progress: Progress) -> None:
        """Add a snapshot to the running mean if one is due."""
        merging = self.settings.merge
        late_enough = progress.step >= merging.start * progress.steps
        last = progress.step + 1 == progress.steps
        regular = progress.step % merge.every(merging.every, progress.steps) == 0
        due = (regular and late_enough) or (last and self._mean is None)
        if merging.kind != "running-mean" or not due:
            return
        if self._mean is None:
            self._mean = merge.RunningMean(self._model())
        else:
            self._mean.add(self._model(), self._anchors.get(TASK_START), merging.wise_we)

    def _end_slots(self, task: Task, past: Past, validate: Validate) -> None:
        """Merge weights, then offer the task's samples to the buffer."""
        merging = self.settings.merge
        if merging.kind == "wise-ft":
            self._interpolate(validate)
        elif merging.kind == "running-mean" and self._mean is not None:
            self._put(self._mean.mean)
            self._mean = None
        self._anchors.pop(TASK_START, None)
        self.teachers.end_task()
        for penalty in self.penalties:
            penalty.end_task(self.backbone, task, past)
            if found := penalty.record():
                self.notes[penalty.name] = found
        self.store(task, past)

    def store(self, task: Task, past: Past | None = None) -> None:
        """Offer a task's samples to the buffer, if there is one."""
        if self.buffer is not None:
            self.buffer.offer(f"task {task.index}", task.train, None if past is None else past.embed)

    def _interpolate(self, validate: Validate) -> None:
        merging = self.settings.merge
        before, after = self._anchors[merging.reference], self._model()

        def apply(alpha: float) -> None:
            self._put(merge.interpolate(before, after, alpha))

        if merging.alpha == "sweep":
            chosen, table = merge.sweep(merging.grid, apply, validate)
            self.notes["merge"] = {"alpha": chosen, "chosen_on": "validation", "sweep": table}
        else:
            apply(float(merging.alpha))
            self.notes["merge"] = {"alpha": float(merging.alpha)}

    # -- state ------------------------------------------------------------------------------------------------

    def slot_structure(self) -> dict[str, Any]:
        """Return what the penalties need to rebuild their modules, as JSON."""
        return {p.name: structure for p in self.penalties if (structure := p.structure())}

    def grow_slots(self, structure: Mapping[str, Any]) -> None:
        """Create the modules that `structure` describes, as far as they do not exist."""
        for penalty in self.penalties:
            penalty.grow(structure.get(penalty.name, {}), self.seed)
            if len(penalty.modules):
                self.penalty_modules[penalty.name] = penalty.modules
        self.penalty_modules.to(next(self.backbone.parameters()))

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
        """Restore what `extra_tensors` and `extra_state` returned."""
        super().load_extra(tensors, state)
        self.teachers.require(state.get("start_model", {}))
        self._anchors, mean = {}, {}
        of_penalties: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "anchor":
                which, _, name = rest.partition(".")
                self._anchors.setdefault(which, {})[name] = tensor
            elif kind == "mean":
                mean[rest] = tensor
            elif kind == "penalty":
                which, _, name = rest.partition(".")
                of_penalties.setdefault(which, {})[name] = tensor
        for penalty in self.penalties:
            penalty.load(of_penalties.get(penalty.name, {}))
        if TASK_START in self._anchors:
            start = {n.removeprefix("backbone."): t for n, t in self._anchors[TASK_START].items()}
            self.teachers.begin_task(self.backbone, start)
        count = state.get("mean_count")
        self._mean = None if count is None else merge.RunningMean(mean, int(count))
        if self.buffer is not None and state.get("buffer") is not None:
            self.buffer.restore(state["buffer"])

    def task_memory(self) -> TaskMemory:
        """Return what a task needs and does not exist now: teachers, reference weights, their running mean."""
        copies = {f"a frozen copy ({kind})": self.teacher_size() for kind in self.teachers.missing()}
        changing = {n: t for n, t in self._changing().items() if not n.startswith(PENALTY_MODULES)}
        size = sum(tensor.numel() for tensor in changing.values())
        missing = sorted(self._references() - self._anchors.keys())
        tensors = {f"a copy of the weights that train ({kind})": size for kind in missing}
        if self.settings.merge.kind == "running-mean" and self._mean is None:
            tensors["their running mean"] = size
        growing = {p.name: p.new_parameters() for p in self.penalties}
        tensors |= {f"modules of {name}": count for name, count in growing.items() if count}
        trained = parameters_of(self, self.trainable)
        values = {p.name: p.new_values(trained) for p in self.penalties}
        tensors |= {f"values of {name}": count for name, count in values.items() if count}
        unknown = [f"modules of {name}" for name, count in growing.items() if count is None]
        if any(penalty.uses_teacher for penalty in self.penalties):
            unknown.append("an embedding of each text for the teacher")
        return TaskMemory(copies, tensors, tuple(unknown))

    def describe(self) -> Cost:
        """Count parameters and bytes; the modules of penalties train, and predictions do not use them."""
        cost = super().describe()
        beside = sum(p.numel() for p in self.penalty_modules.parameters())
        growing = sum(penalty.new_parameters() or 0 for penalty in self.penalties)
        return replace(
            cost,
            trainable_parameters=cost.trainable_parameters + growing,
            active_parameters=cost.active_parameters - beside,
        )

    @property
    def teacher_parameters(self) -> int:
        """The number of parameters of the frozen copies of the model now."""
        return self.teachers.parameters()

    def teacher_size(self) -> int:
        """Return the number of parameters of a frozen copy of the model at the task's start."""
        return sum(parameter.numel() for parameter in self.backbone.parameters())
