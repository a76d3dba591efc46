"""The types that several layers share. No behaviour beyond what a type needs, and no torch at run time.

The words are those of `docs/glossary.md`: a *scenario* yields *tasks*; an *evaluation set* is the data of one column of
the score matrix; a *protocol* decides what a method may know when it is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from everclip.templates import filled

if TYPE_CHECKING:
    from torch import Tensor

    from everclip.config import TrainingConfig
    from everclip.data.table import Table

Features = dict[str, "Tensor"]
"""Per-sample outputs of an encoder, leading dimension `N`; `"embedding"` `(N, D)` of unit norm is always there."""

Kind = Literal["classification", "retrieval", "pairs", "multi-image"]
View = Literal["train", "eval"]
Order = Literal["shuffle", "cycle", "once"]
Space = Literal["all", "seen", "batch"]


@dataclass(frozen=True)
class ClassEntry:
    """One output column of a classifier; equal names are already merged or kept apart.

    `tasks` are the indices of its tasks; `seen` is whether one of them was already learned.
    """

    key: str
    name: str
    templates: tuple[str, ...] = ("{}",)
    tasks: tuple[int, ...] = ()
    seen: bool = True

    def prompts(self) -> tuple[str, ...]:
        """Return every template with the class name inserted."""
        return tuple(filled(template, self.name) for template in self.templates)


@dataclass(frozen=True)
class LabelSpace:
    """Everything that a method may know at test time: the classes, and the task if the protocol gives it."""

    entries: tuple[ClassEntry, ...]
    known_task: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the entries, in column order."""
        return tuple(entry.key for entry in self.entries)

    def prompts(self) -> tuple[str, ...]:
        """Return the prompts of all entries, in column order."""
        return tuple(text for entry in self.entries for text in entry.prompts())


@dataclass(frozen=True)
class ClassHead:
    """A classifier that a method learned on top of its backbone, in the form of an export.

    Attributes:
        tensors: the content of `head.safetensors`.
        rule: the content of `head.json`: everything else that the loader needs.
        entries: the learned classes, in the order of columns.
        answers: the method's own scores over the learned classes: maps unit image embeddings `(N, D)` and unit class
            embeddings `(C, D)` to `(N, C)` float64; the largest is the answer.
    """

    tensors: dict[str, Tensor]
    rule: dict[str, Any]
    entries: tuple[ClassEntry, ...]
    answers: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TextCorrection:
    """A correction of text embeddings that a method learned beside its backbone, in the form of an export.

    Attributes:
        tensors: the content of `correction.safetensors`.
        rule: the content of `correction.json`: everything else that the loader needs.
        texts: the learned texts.
        encode: the method's own text embeddings: maps token ids `(N, L)` to `(N, D)`.
    """

    tensors: dict[str, Tensor]
    rule: dict[str, Any]
    texts: tuple[str, ...]
    encode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EvalProtocol:
    """How a set is scored.

    Attributes:
        name: its name in results.
        space: the label space: the set's `own` classes, those `seen` up to the row, `all` of the scenario, or
            `learned`: the set's own, once its task is learned. For retrieval, the same words choose the pool of
            candidates.
        known_task: whether the method knows the task of a test sample.
        unseen: with `space="seen"`, a set that was not learned yet is scored on its `own` classes, or its cell is left
            out (`skip`).
        same_texts: classes or captions with equal tokens count as `one` answer, correct for each of them; or they stay
            `apart`, as X-TAIL is published: then the same word in another data set is an error.
    """

    name: str
    space: Literal["own", "seen", "all", "learned"] = "own"
    known_task: bool = False
    unseen: Literal["own", "skip"] = "skip"
    same_texts: Literal["one", "apart"] = "one"


UNNUMBERED = -1
"""The index of a task without a number; the learner assigns the next one."""


@dataclass(frozen=True)
class Task:
    """One unit of a stream: the data that are learned together, and their description.

    `index` is its number in the stream, or `UNNUMBERED`. `covers` lists the tasks that were joined into this one, for a
    method that learns everything at once; of a stream seen once, the stretches between its rows. `once` says that every
    sample may be drawn only once, in the order of `train`.
    """

    index: int
    name: str
    train: Table
    val: Table | None = None
    classes: tuple[ClassEntry, ...] | None = None
    language: str | None = None
    time: str | None = None
    covers: tuple[int, ...] = ()
    once: bool = False


@dataclass(frozen=True)
class EvalSet:
    """The data of one column of the result.

    `task` is the index of its task; `None` for known data and for the retention suite. A `part` measures some of a
    task's data separately; `everything` holds the test rows of all tasks and of known data. Neither counts in metrics
    of the score matrix. With `seen_only`, a cell with the label space `seen` counts only images of the classes in it.
    """

    name: str
    kind: Kind
    data: Table
    task: int | None = None
    group: Literal["task", "part", "known", "everything", "retention"] = "task"
    classes: tuple[ClassEntry, ...] | None = None
    seen_only: bool = False


@dataclass(frozen=True)
class Source:
    """A weighted part of a stream; shares are exact for any sizes."""

    table: Table
    weight: float = 1.0


class StreamMemory(Protocol):
    """Stored samples of a stream that is seen once."""

    def drawn(self, batch: int) -> Sequence[tuple[Table, int]]:
        """Return the stored samples of a batch as (table, position) pairs; they come from earlier batches."""


@dataclass(frozen=True)
class Stream:
    """The source of a phase's batches. The order of samples is a pure function of the seed.

    Attributes:
        sources: one table, or several that are mixed by weight.
        batch_size: samples per step over all processes.
        view: `train` augments images and draws captions, `eval` does neither.
        order: `shuffle` permutes in each epoch, `cycle` repeats the given order, `once` stops after one pass.
        columns: the columns of a batch besides `id`: any of `image`, `tokens` and `label`. For a frozen tower,
            `image_embedding` and `text_embedding` replace the first two, and `class_embedding` is added to `label`; the
            engine then encodes each sample only once. `image_id` and `text_id` are the keys of feature tables.
        classes: the label space of the column `label`; of a stream with the space `seen` or `batch`, in the order in
            which they appear.
        space: the classes that a step knows: `all`; those `seen` up to its batch; or those that occur in its `batch`
            (over all processes). Positions in `label` count these.
        known: with the space `seen`, the number of classes that were seen before the first batch.
        times: with the order `once`, the number of steps on each batch, each with an augmentation of its own.
        first: with the order `once`, the number of batches before the first row of the sources.
        memory: stored samples that are added to each batch; then `batch_size` counts new samples only.
    """

    sources: tuple[Source, ...]
    batch_size: int
    view: View = "train"
    order: Order = "shuffle"
    columns: tuple[str, ...] = ("image", "tokens")
    classes: tuple[ClassEntry, ...] | None = None
    space: Space = "all"
    known: int = 0
    times: int = 1
    first: int = 0
    memory: StreamMemory | None = None


@dataclass(frozen=True)
class RowScale:
    """Factors on the rows of a group's parameters, inside the optimiser (`everclip.training.row_scale`).

    Attributes:
        buffer: name of a buffer of the method's module with the factors `(rows, 1)`; it is a part of checkpoints.
        on: what they multiply: the `gradient` (after clipping, before the moments), the weight `decay`, the `update`
            (the step itself, after the moments).
    """

    buffer: str
    on: frozenset[Literal["gradient", "decay", "update"]]


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning-rate factor and a weight decay.

    Attributes:
        names: names of parameters of the method's module.
        lr_scale: factor on the learning rate.
        weight_decay: overrides that of the training configuration.
        row_scale: factors on the rows of its parameters, which must have as many rows as there are factors.
    """

    names: tuple[str, ...]
    lr_scale: float = 1.0
    weight_decay: float | None = None
    row_scale: RowScale | None = None


@dataclass(frozen=True)
class StepDecay:
    """A learning rate that is multiplied by `factor` after every `every` steps."""

    every: int
    factor: float


@dataclass(frozen=True)
class Phase:
    """A part of learning a task; a method declares it and the engine runs it.

    Attributes:
        name: its name in the log and in checkpoints.
        streams: stream name -> stream; every step takes one batch of each. The budget counts the stream `main`.
        param_groups: the parameters that train.
        optimiser: `default` is that of the training configuration; `adam` is Adam with coupled (L2) weight decay;
            `None` means one pass over the streams without gradient, for closed-form methods: `forward` receives every
            batch and accumulates what it needs.
        gradients: without an optimiser: whether the pass computes gradients, which the method reads in
            `take_gradients`. The model stays as it is, in evaluation mode.
        steps: number of optimiser steps; `None` = from the training budget and the size of the first source of the
            stream `main` (so that replay costs no extra steps).
        epochs: passes over the first source of the stream `main`, in place of the training budget.
        stretch: factor on the steps of a budget in epochs or samples; a budget in steps or in computation does not
            change.
        budgets: number of budgets of a task that it may spend, in whatever unit the budget is.
        lr: overrides the learning rate of the training configuration.
        schedule: overrides its schedule and warm-up.
        repeats: number of times that the phase runs; each repeat restarts its schedule.
        guarded: whether the retention guard watches it; false if only parts beside the model train.
        chooses: whether its samples only decide a threshold, so that they may be validation data.
        notes: notes for people; the log shows each once.
    """

    name: str
    streams: Mapping[str, Stream]
    param_groups: tuple[ParamGroup, ...] = ()
    optimiser: str | None = "default"
    steps: int | None = None
    epochs: float | None = None
    stretch: float = 1.0
    budgets: float = 1.0
    lr: float | None = None
    schedule: StepDecay | None = None
    repeats: int = 1
    guarded: bool = True
    chooses: bool = False
    notes: tuple[str, ...] = ()
    gradients: bool = False


@dataclass(frozen=True)
class Progress:
    """The position of a step; the only clock that a method may use."""

    task: int
    phase: str
    repeat: int
    step: int
    steps: int
    seed: int


@dataclass(frozen=True)
class Cost:
    """The cost of a method, counted from the module itself. Texts are for people.

    Attributes:
        trainable_parameters: parameters that train.
        stored_parameters, bytes: size of the model and of what the method stores beside it, now.
        active_parameters: parameters that one prediction uses.
        buffer_samples: samples in the buffer.
        extra_per_image: a text on the computation of a prediction beyond the plain model.
        growth_per_task: a text on what each task adds.
        task_parameters: number of further values while a task is learned; 0 inside a task.
        held_during_task: a text on these values.
    """

    trainable_parameters: int
    stored_parameters: int
    active_parameters: int
    bytes: int
    buffer_samples: int = 0
    extra_per_image: str = "none"
    growth_per_task: str = "none"
    task_parameters: int = 0
    held_during_task: str = "nothing more"


@dataclass(frozen=True)
class Needs:
    """The requirements of a method; checked against the scenario before a run starts.

    Attributes:
        supervision: the supervision that it can use: `labels` (class names), `captions`, or both.
        all_tasks_at_once: whether the run joins all tasks into one (an upper bound, not a continual learner).
        reference: the reference data that it needs: any of `images` and `texts`.
        transformer: whether modules grow inside its towers, which must then be open_clip's own transformers.
        borders: whether it must know where a part of a stream begins and ends. A stream that is seen once hides this
            from all other methods; results say which method used it.
    """

    supervision: frozenset[str] = frozenset({"labels", "captions"})
    all_tasks_at_once: bool = False
    reference: frozenset[str] = frozenset()
    transformer: bool = False
    borders: bool = False


@dataclass(frozen=True)
class Reference:
    """Unlabelled data of no task, for distillation.

    Attributes:
        images: images; none of them is in an evaluation set or used for validation.
        texts: distinct texts, in the order of their source.
    """

    images: Table | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Past:
    """The earlier data that a method may use, and the training settings of the run.

    Attributes:
        tasks: the earlier tasks, in order.
        base: the backbone's own training data, if the scenario has them.
        training: the run's training configuration (batch size, budget...).
        seed: the run's seed.
        reference: reference data, if the scenario has them.
        embed: maps a table to unit embeddings `(N, D)` of its images by the current method; `None` in a plan.
    """

    tasks: tuple[Task, ...] = ()
    base: Table | None = None
    training: TrainingConfig | None = None
    seed: int = 0
    reference: Reference | None = None
    embed: Callable[[Table], Tensor] | None = None


Validate = Callable[[], Mapping[str, float]]
"""Return the current method's scores on the validation data of all learned tasks: name -> score in [0, 1]."""

Batch = dict[str, dict[str, Any]]
"""stream name -> column name -> values"""
