"""The learner: a method, what it has learned, and the engine that trains it. Runs are loops over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, overload

import torch
from accelerate import Accelerator

from everclip.config import (
    EvaluationConfig,
    GuardConfig,
    TrainingConfig,
    evaluation_of,
)
from everclip.contracts import EvalSet, Past, Phase, Reference, Task
from everclip.data.pictures.images import ImageStore
from everclip.data.sampling.batches import BatchMaker
from everclip.data.table import Table
from everclip.evaluation.results import Score
from everclip.evaluation.scoring import RowScorer
from everclip.evaluation.set_features import SetFeatures
from everclip.evaluation.validation import require_pictures, validation_scores
from everclip.features.encoder import image_encoder
from everclip.features.pictures import Pictures as TablePictures
from everclip.features.service import FeatureService
from everclip.files import user_path
from everclip.learner import creating, learnable, predicting, saved
from everclip.learner.given import Pictures, Texts
from everclip.learner.numbers import numbered, require_new, require_task
from everclip.learner.pictures import LearnedPictures
from everclip.learner.showing import shown
from everclip.learner.tasks import UserData, to_measure
from everclip.methods.base import Method
from everclip.models.modules.short_texts import needed_tokens
from everclip.scenarios.base import ListScenario
from everclip.templates import GivenTemplates
from everclip.training.engine import Engine
from everclip.training.guard import Guard, watchable
from everclip.training.precision import chosen_precision
from everclip.training.processes import start_processes
from everclip.training.watching import Cursor, Watcher

Scores = dict[str, dict[str, dict[str, Score]]]


class Learner:
    """Keeps one CLIP up to date.

    Args:
        method: how to learn and predict; owns the backbone.
        training: optimiser, schedule, budget.
        seed: enters every random draw.
        accelerator: device and processes; default from `training`.
        base: the backbone's own training data, where known.
        base_val: validation part of the base.

    Example:
        >>> learner = Learner.load("runs/emoji-time-replay-s0")
        >>> learner.classify(["cat.png"], ["a cat", "a dog"])
    """

    def __init__(
        self,
        method: Method,
        training: TrainingConfig,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        base: Table | None = None,
        base_val: Table | None = None,
    ) -> None:
        self.accelerator = accelerator or start_processes(training)
        # What it means here, so that a saved learner goes on in the same format on another machine.
        precision = chosen_precision(training.precision, self.accelerator.device)
        training = training.model_copy(update={"precision": precision})
        self.method = method.to(self.accelerator.device)
        # Now, so that a restored learner is as one that learned: torch chooses kernels by `requires_grad`, even where
        # no gradient is taken.
        self.method.mark_trainable()
        self.training, self.seed = training, seed
        self.base, self.base_val = base, base_val
        self.reference: Reference | None = None
        self.own_classes = False
        self.tasks: list[Task] = []
        self.learned: set[int] = set()
        self.recall: Callable[[], ListScenario] | None = None
        self.store, self.pictures = ImageStore(), LearnedPictures()
        self.features = FeatureService(self.store, training.workers)
        self.guard: Guard | None = None
        self.guarding: GuardConfig | None = None
        self._guarded: Mapping[str, Any] | None = None
        backbone = method.backbone
        self._maker = BatchMaker(
            backbone.pixels,
            backbone.preprocess,
            backbone.tokenise,
            training.augment,
            training.captions,
            seed,
            self.store,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            partial(needed_tokens, backbone.clip),
        )
        self.engine = Engine(self.accelerator, self._maker, self.features, training, seed)

    # -- learning ---------------------------------------------------------------------------------------------

    def past(self) -> Past:
        """Return what the method may look back on."""
        return Past(tuple(self.tasks), self.base, self.training, self.seed, self.reference, self._embed)

    def _embed(self, table: Table) -> torch.Tensor:
        """Return unit embeddings `(N, D)` of a table's pictures by the method as it is now."""
        self.method.eval()
        encoder = image_encoder(self.method, self.method.encoder_keys())
        return self.features.images(encoder, TablePictures.of(table))["embedding"]

    def plan(self, task: Task) -> list[Phase]:
        """Return the phases that learning `task` now would take."""
        return self.method.phases(numbered(task, self.next_index), self.past())

    def learn(
        self,
        task: Task,
        cursor: Cursor | None = None,
        watcher: Watcher | None = None,
        *,
        show: bool | None = None,
    ) -> Task:
        """Learn one task, or the rest of it.

        Args:
            task: of a scenario, or made of new data by `everclip.make_task`; one without a number gets the next.
            cursor: where to go on; kept up to date, so that a watcher can save it.
            watcher: follows the steps.
            show: whether progress is shown where no watcher does; `None` = on a terminal.

        Returns:
            The task that was learned, with its number.

        Raises:
            ConfigError: if it is no task, if one with this number was learned already, or if a batch is one pair.
            DataError: if it holds nothing to learn: one text or one picture alone.
            DivergedError: if the loss became NaN, infinite or exploded.
        """
        task = require_task(task)
        self.remember()
        task = numbered(task, self.next_index)
        require_new(task, self.learned)
        cursor = cursor or Cursor()
        new = not cursor.begun
        self.engine.may_idle = learnable.may_idle(
            self.method, task, self.training.batch_size, self.past(), announced=watcher is not None or not new
        )
        if new:
            if self.method.chooses_on_validation:
                require_pictures([*self.tasks, task], self.base_val)  # now, not after hours of training
            self.method.begin_task(task, self.past())
            cursor.begun = True
        phases = self.plan(task)
        self.pictures.add(phases)
        guard = self.guard if any(phase.optimiser is not None for phase in phases) else None
        if guard is not None and new:
            guard.begin_task(self.method, len(self.learned))
        self._run_phases(task, phases, cursor, watcher or shown(task, phases, self.training, show))
        self.method.eval()
        self.method.end_task(task, self.past(), lambda: self._validate(task))
        note = None if guard is None else guard.end_task(self.method)
        if note is not None:
            self.method.notes["guard"] = note
        self.engine.columns.release()
        self.tasks.append(task)
        self.learned |= set(task.covers or (task.index,))
        return task

    @property
    def next_index(self) -> int:
        """The number of the next task."""
        return max(self.learned, default=-1) + 1

    def remember(self) -> None:
        """Read the stream that a run learned from, if the method needs its data to go on (replay, merging)."""
        if self.recall is not None:
            recall, self.recall = self.recall, None
            scenario = recall()
            self.follow(scenario)
            self.tasks = [t for t in scenario.tasks if t.index in self.learned]
            if self.guarding is not None:
                self.watch(watchable(scenario), self.guarding)

    def follow(self, scenario: ListScenario) -> None:
        """Take from a stream what methods look back on, and how its headline asks: among all classes or own."""
        self.base, self.base_val, self.reference = scenario.base, scenario.base_val, scenario.reference
        asked = {p.name: p.space for p in scenario.protocols}
        self.own_classes = asked.get(scenario.shown_protocol) == "own"

    def watch(self, sets: Sequence[EvalSet], config: GuardConfig | None = None) -> Guard:
        """Let a retention guard look at `sets` while tasks are learned; they must not be what results report.

        Args:
            sets: what it looks at.
            config: what is allowed; default: what the preset says (`safe` does), else one point.

        Raises:
            ConfigError: if `config` names none of them, or no limit.
        """
        held = GuardConfig(max_drop=1.0)
        if self.guard is not None:  # what it is held to stays
            held, self._guarded = self.guard.config, self.guard.state()
        self.guard, self.guarding = Guard(config or held, sets, self.features), None
        if self._guarded is not None:
            self.guard.restore({}, self._guarded)
        return self.guard

    def _run_phases(
        self, task: Task, phases: Sequence[Phase], cursor: Cursor, watcher: Watcher | None
    ) -> None:
        while cursor.phase < len(phases):
            phase = phases[cursor.phase]
            while cursor.repeat < phase.repeats:
                self._run_phase(task, phase, cursor, watcher)
                cursor.repeat, cursor.step, cursor.optimiser = cursor.repeat + 1, 0, {}
            self.method.end_phase(task, phase)
            cursor.phase, cursor.repeat = cursor.phase + 1, 0

    def _run_phase(self, task: Task, phase: Phase, cursor: Cursor, watcher: Watcher | None) -> None:
        # What is solved in closed form changes no weights on the way.
        guard = self.guard if phase.optimiser is not None and phase.guarded else None
        if guard is None or not guard.stopped:
            self.engine.run(self.method, phase, task.index, cursor, watcher, guard)

    def _validate(self, task: Task) -> Mapping[str, float]:
        tasks = [*self.tasks, task]
        return validation_scores(self.method, tasks, self.base_val, self.features, self.own_classes)

    # -- predicting -------------------------------------------------------------------------------------------

    def encode(self, images: Pictures = (), texts: Texts = ()) -> dict[str, torch.Tensor]:
        """Return unit embeddings: `images` `(N, D)` and `texts` `(M, D)`, as far as given, float32 on the CPU.

        Args:
            images: one picture or several: paths (`~` is the user's), encoded bytes, PIL pictures, arrays `(H, W, 3)`.
            texts: one text or several, encoded as they are.

        Raises:
            ConfigError: if a path names no file, or something is no picture or text.
            DataError: if a picture cannot be read.
        """
        return predicting.encode(self.method, images, texts)

    @overload
    def classify(
        self, images: Pictures, names: Texts, templates: GivenTemplates = ..., *, top: None = None
    ) -> list[tuple[str, float]]: ...

    @overload
    def classify(
        self, images: Pictures, names: Texts, templates: GivenTemplates = ..., *, top: int
    ) -> list[list[tuple[str, float]]]: ...

    def classify(
        self, images: Pictures, names: Texts, templates: GivenTemplates = ("{}",), *, top: int | None = None
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """Return the best name and its cosine for each picture, or with `top` a list of the best so many.

        Raises:
            ConfigError: if there are no names to choose from, or a template has no place for the name.
        """
        if top is None:
            return predicting.classify(self.method, images, names, templates)
        return predicting.ranked(self.method, images, names, templates, top)

    def evaluate(
        self,
        on: ListScenario | UserData,
        config: EvaluationConfig | Mapping[str, Any] | None = None,
        *,
        templates: GivenTemplates = ("{}",),
    ) -> Scores:
        """Score the learner as it is now.

        Args:
            on: a scenario (every evaluation set, under every protocol), or data as `make_task` takes them: their test
                rows if a column `split` marks some, else all; retrieval where there are captions, else
                classification among the data's own classes.
            config: top-k, confidence, batch size.
            templates: texts around class names.

        Returns:
            `[set][protocol][metric]` -> `Score` with its interval.
        """
        settings = evaluation_of(config)
        scenario = on if isinstance(on, ListScenario) else to_measure(on, templates)
        sets = SetFeatures(scenario.eval_sets, self.features, settings.batch_size)
        scorer = RowScorer(scenario, sets, settings, self.seed, {})
        return scorer.row(self.method, self.learned, lambda done, total: None).scores

    # -- state ------------------------------------------------------------------------------------------------

    def tensors(self, optimiser: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return every tensor that continuing needs: weights, what the method keeps, the optimiser's moments."""
        state = {f"model/{k}": v for k, v in self.method.state_dict().items()}
        state |= {f"extra/{k}": v for k, v in self.method.extra_tensors().items()}
        if self.guard is not None:
            state |= {f"guard/{k}": v for k, v in self.guard.tensors().items()}
        return state | {f"optimiser/{k}": v for k, v in optimiser.items()}

    def state(self, cursor: Cursor) -> dict[str, Any]:
        """Return the JSON that continuing needs besides tensors."""
        place = {"phase": cursor.phase, "repeat": cursor.repeat, "step": cursor.step, "begun": cursor.begun}
        return {
            "cursor": place,
            "learned": sorted(self.learned),
            "structure": self.method.structure(),
            "trainable": list(self.method.trainable),
            "method": self.method.extra_state(),
            "guard": self._guarded if self.guard is None else self.guard.state(),
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Cursor:
        """Put back what `tensors` and `state` returned; the method may have grown in between.

        Raises:
            CheckpointError: if the tensors do not fit the model.
        """
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "extra": {}, "optimiser": {}, "guard": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            parts[kind][name] = tensor
        self.learned = set(state["learned"])
        self.method.grow(state["structure"])
        # A hook names what trains when a task begins; a task that goes on does not begin again.
        self.method.trainable = list(state.get("trainable", self.method.trainable))
        self.method.to(self.accelerator.device)
        saved.put_tensors(self.method, parts["model"])
        device = self.accelerator.device
        self.method.load_extra({k: v.to(device) for k, v in parts["extra"].items()}, state["method"])
        self._guarded = state.get("guard")
        if self.guard is not None and self._guarded is not None:
            self.guard.restore({k: v.to(device) for k, v in parts["guard"].items()}, self._guarded)
        cursor = Cursor(**state["cursor"])
        cursor.optimiser = parts["optimiser"]
        if cursor.begun:
            self.method.mark_trainable()
        return cursor

    def save(self, folder: Path | str) -> Path:
        """Save the learner as it is now (between tasks) in `folder`: weights, settings, and what its buffer holds.

        Raises:
            RunFolderError: if the folder belongs to a run, whose own checkpoints this would spoil.
        """
        return saved.save(self, user_path(folder, "save"))

    @classmethod
    def create(
        cls,
        backbone: str | PathLike[str] | Mapping[str, Any] = "builtin:tiny",
        method: str = "finetune",
        training: Mapping[str, Any] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Learner:
        """Build a learner from names.

        Args:
            backbone: a name, or the settings of `BackboneConfig`: `{"name": "ViT-B-32", "weights": "file.pt"}`.
            method: a preset, or `file.py:Class`.
            training: what differs from the defaults of `TrainingConfig`; five epochs per task if no budget is given.
            seed: enters every random draw.
            settings: of the method: `replay={"size": 100}`.
        """
        parts = creating.parts_of(backbone, method, training, seed, settings)
        learner = cls(parts.method, parts.training, seed)
        if parts.guard.max_drop is not None:  # with nothing to watch yet, which it says when it learns
            learner.watch((), parts.guard)
        return learner

    @classmethod
    def load(cls, folder: Path | str, scenario: ListScenario | None = None) -> Learner:
        """Load the newest good checkpoint of a run folder, or what `save` wrote.

        Args:
            folder: where it is.
            scenario: the stream it learned from. Needed to learn on with replay from a *run* folder (its buffer
                refers to samples of earlier tasks); `save` keeps those samples, and predicting needs none.

        Raises:
            CheckpointError: if there is none.
        """
        return saved.load(cls, user_path(folder, "load"), scenario)
