"""The types that the rooms hand to each other. No behaviour beyond what a type needs, and no torch at run time.

The words are those of the documentation: a *scenario* yields *tasks*; an *evaluation set* is what one column of
the score matrix measures; a *protocol* decides what a method may know when it is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from everclip.templates import filled

if TYPE_CHECKING:
    from torch import Tensor

    from everclip.config import TrainingConfig
    from everclip.data.table import Table

Features = dict[str, "Tensor"]
"""Per-sample outputs of an encoder, leading dimension `N`; `"embedding"` `(N, D)` of unit norm is always there."""

Kind = Literal["classification", "retrieval", "pairs"]
View = Literal["train", "eval"]
Order = Literal["shuffle", "cycle", "once"]


@dataclass(frozen=True)
class ClassEntry:
    """One output column of a classifier; merging of equal names is already decided.

    `tasks` are the tasks it belongs to, `seen` whether one of them was learned already.
    """

    key: str
    name: str
    templates: tuple[str, ...] = ("{}",)
    tasks: tuple[int, ...] = ()
    seen: bool = True

    def prompts(self) -> tuple[str, ...]:
        """Return the class name put into every template."""
        return tuple(filled(template, self.name) for template in self.templates)


@dataclass(frozen=True)
class LabelSpace:
    """Everything a method may know at test time: its classes, and the task if the protocol tells it."""

    entries: tuple[ClassEntry, ...]
    known_task: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the entries, in column order."""
        return tuple(entry.key for entry in self.entries)


@dataclass(frozen=True)
class ClassHead:
    """A classifier that a method learned on top of its backbone, as an export writes it beside the backbone.

    Attributes:
        tensors: what `head.safetensors` holds.
        rule: what `head.json` holds: everything else that the loader needs.
        entries: the learned classes, in the order of columns.
        answers: what the method itself answers over the learned classes: unit image embeddings `(N, D)` and unit class
            embeddings `(C, D)` to scores `(N, C)` float64, of which the largest is the answer.
    """

    tensors: dict[str, Tensor]
    rule: dict[str, Any]
    entries: tuple[ClassEntry, ...]
    answers: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EvalProtocol:
    """How a set is scored.

    Attributes:
        name: how results call it.
        space: the answers on offer: the set's `own`, those `seen` up to the row, or `all` of the scenario. For
            retrieval the same words choose the pool of candidates.
        known_task: whether the method is told which task a test sample belongs to.
        unseen: what a set does that was not learned yet under `space="seen"`: be scored on its `own` answers, or
            `skip` the cell.
        same_texts: classes or captions that the model reads as equal tokens are `one` answer, right for each of them;
            or stay `apart`, as X-TAIL publishes it: the same word in another data set is an error.
    """

    name: str
    space: Literal["own", "seen", "all"] = "own"
    known_task: bool = False
    unseen: Literal["own", "skip"] = "skip"
    same_texts: Literal["one", "apart"] = "one"


UNNUMBERED = -1
"""The index of a task that has no number yet: the learner gives it the next one."""


@dataclass(frozen=True)
class Task:
    """One unit of a stream: training data and what may be known about it.

    `index` is its number in the stream, or `UNNUMBERED`. `covers` lists the tasks joined into this one, for a method
    that learns everything at once.
    """

    index: int
    name: str
    train: Table
    val: Table | None = None
    classes: tuple[ClassEntry, ...] | None = None
    language: str | None = None
    time: str | None = None
    covers: tuple[int, ...] = ()


@dataclass(frozen=True)
class EvalSet:
    """Data that one column of the result measures.

    `task` is the index of the task it belongs to, `None` for what was known before and for the retention suite. A
    `part` shows some of a task's data by themselves; `everything` holds the test rows of all tasks and of what was
    known before. Neither enters anything that is computed from the score matrix.
    """

    name: str
    kind: Kind
    data: Table
    task: int | None = None
    group: Literal["task", "part", "known", "everything", "retention"] = "task"
    classes: tuple[ClassEntry, ...] | None = None


@dataclass(frozen=True)
class Source:
    """A weighted part of a stream; shares are exact by construction, whatever the sizes."""

    table: Table
    weight: float = 1.0


@dataclass(frozen=True)
class Stream:
    """Where the batches of one phase come from. Which sample stands at which place is a pure function of the seed.

    Attributes:
        sources: one table, or several that are mixed by weight.
        batch_size: samples per step over all processes.
        view: `train` augments images and draws captions, `eval` does neither.
        order: `shuffle` permutes anew each epoch, `cycle` repeats the given order, `once` stops after one pass.
        columns: what a batch holds besides `id`: any of `image`, `tokens` and `label`; for a tower that does not train
            `image_embedding` and `text_embedding` stand in for the first two, and `class_embedding` goes with `label`:
            the engine encodes each sample once.
        classes: the label space of column `label`.
    """

    sources: tuple[Source, ...]
    batch_size: int
    view: View = "train"
    order: Order = "shuffle"
    columns: tuple[str, ...] = ("image", "tokens")
    classes: tuple[ClassEntry, ...] | None = None


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning-rate factor and a weight decay.

    Attributes:
        names: names of parameters of the method's module.
        lr_scale: factor on the learning rate.
        weight_decay: overrides that of the training configuration.
    """

    names: tuple[str, ...]
    lr_scale: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True)
class StepDecay:
    """A learning rate that is multiplied by `factor` after every `every` steps."""

    every: int
    factor: float


@dataclass(frozen=True)
class Phase:
    """One stretch of training that a method declares and the engine carries out.

    Attributes:
        name: how the log and checkpoints call it.
        streams: stream name -> stream; every step takes one batch of each. The budget counts the stream `main`.
        param_groups: what trains.
        optimiser: `default` takes that of the training configuration; `adam` is Adam with coupled (L2) weight decay;
            `None` means one pass over the streams without gradient, for closed-form methods: `forward` sees every
            batch and accumulates what it needs.
        steps: number of optimiser steps; `None` = from the training budget and the size of the first source of
            the stream `main` (so that replay costs no extra steps).
        epochs: passes over the first source of the stream `main`, in place of the training budget.
        stretch: factor on the steps that a budget in epochs or samples gives; a budget in steps is kept.
        lr: overrides the learning rate of the training configuration.
        schedule: overrides its schedule (and warm-up) with steps.
        repeats: how often the phase runs in a row (each repeat restarts its schedule).
        guarded: whether the retention guard watches it: what trains beside the model is none of its business.
        chooses: whether its samples decide a threshold and nothing is learned from them: they may be for validation.
        notes: what people should know about it; the log says it once.
    """

    name: str
    streams: Mapping[str, Stream]
    param_groups: tuple[ParamGroup, ...] = ()
    optimiser: str | None = "default"
    steps: int | None = None
    epochs: float | None = None
    stretch: float = 1.0
    lr: float | None = None
    schedule: StepDecay | None = None
    repeats: int = 1
    guarded: bool = True
    chooses: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Where a step stands; the only clock that a method may read."""

    task: int
    phase: str
    repeat: int
    step: int
    steps: int
    seed: int


@dataclass(frozen=True)
class Cost:
    """What a method costs, counted by code from the module itself.

    Attributes:
        trainable_parameters: what trains.
        stored_parameters, bytes: what is held now: the model and what the method keeps beside it.
        active_parameters: what one prediction makes use of.
        buffer_samples: samples of the past.
        extra_per_image: what a prediction computes more than the plain model, for people.
        growth_per_task: what a task leaves behind, for people.
        task_parameters: how many values more are held while a task is learned; 0 inside one.
        held_during_task: what these are, for people.
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
    """What a method relies on; checked against the scenario before a run starts.

    Attributes:
        supervision: what it can learn from: `labels` (class names), `captions`, or both.
        all_tasks_at_once: whether the run joins all tasks into one (an upper bound, not a continual learner).
        reference: which reference data it cannot do without: any of `images` and `texts`.
        transformer: whether modules grow inside its towers, which must then be a ViT and a text transformer.
    """

    supervision: frozenset[str] = frozenset({"labels", "captions"})
    all_tasks_at_once: bool = False
    reference: frozenset[str] = frozenset()
    transformer: bool = False


@dataclass(frozen=True)
class Reference:
    """Unlabeled data that belong to no task: what a teacher is asked about.

    Attributes:
        images: pictures; none of them is measured or used for validation.
        texts: distinct texts, in the order of their source.
    """

    images: Table | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Past:
    """What a method may look back on, and the training settings of the run.

    Attributes:
        tasks: the earlier tasks, in order.
        base: the backbone's own training data, where the scenario has them.
        training: the run's training configuration (batch size, budget...).
        seed: the run's seed.
        reference: unlabeled data, where the scenario names some.
        embed: unit embeddings `(N, D)` of a table's pictures by the method as it is now; `None` in a plan.
    """

    tasks: tuple[Task, ...] = ()
    base: Table | None = None
    training: TrainingConfig | None = None
    seed: int = 0
    reference: Reference | None = None
    embed: Callable[[Table], Tensor] | None = None


Validate = Callable[[], Mapping[str, float]]
"""Scores the method as it is now on the validation data of everything learned so far: name -> score in [0, 1]."""

Batch = dict[str, dict[str, Any]]
"""stream name -> column name -> values"""
