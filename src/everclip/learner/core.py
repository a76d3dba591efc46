"""The learner: a method, the tasks that it has learned, and the engine that trains it. A run is a loop over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, overload

import torch
from accelerate import Accelerator

from everclip.config import EvaluationConfig, GuardConfig, TrainingConfig
from everclip.contracts import EvalSet, Past, Phase, Reference, Task
from everclip.data.pictures.images import ImageStore
from everclip.data.sampling.batches import BatchMaker
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.evaluation.validation import require_pictures, validation_scores
from everclip.features.encoder import image_encoder
from everclip.features.pictures import Pictures as TablePictures
from everclip.features.service import FeatureService
from everclip.files import user_path
from everclip.learner import continuing, creating, learnable, predicting, saved, scoring
from everclip.learner.allowed import apply_training, starting
from everclip.learner.inputs import ImageInputs, TextInputs
from everclip.learner.learn_progress import learn_progress
from everclip.learner.learned_images import LearnedImages
from everclip.learner.observing import LiveStream, Observed, observe
from everclip.learner.phases import run_phases
from everclip.learner.scoring import Scores
from everclip.learner.single_pass import one_pass
from everclip.learner.task_numbers import numbered, require_new, require_task
from everclip.learner.tasks import UserData
from everclip.methods.base import Method
from everclip.models.modules.short_texts import needed_tokens
from everclip.scenarios.base import ListScenario
from everclip.templates import GivenTemplates, templates_of
from everclip.training.budget import macs_of, within_macs
from everclip.training.engine import Engine
from everclip.training.guard import Guard, watchable
from everclip.training.precision import chosen_precision
from everclip.training.processes import start_processes
from everclip.training.run_place import local_run
from everclip.training.trial import count_macs
from everclip.training.watching import Cursor, Watcher
from everclip.urls import is_remote


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
        # Resolve `auto` now, so that a saved learner continues in the same precision on another machine.
        precision = chosen_precision(training.precision, self.accelerator.device)
        training = training.model_copy(update={"precision": precision})
        self.method = method.to(self.accelerator.device)
        apply_training(self.method, training)
        # Now, so that a restored learner equals one that learned: torch chooses kernels by `requires_grad`.
        self.method.mark_trainable()
        self.training, self.seed = training, seed
        self.base, self.base_val = base, base_val
        self.reference: Reference | None = None
        self.own_classes = False
        self.compute: list[dict[str, Any]] = []
        self.tasks: list[Task] = []
        self.learned: set[int] = set()
        self.live: LiveStream | None = None
        self.recall: Callable[[], ListScenario] | None = None
        self.store, self.pictures = ImageStore(), LearnedImages()
        self.features = FeatureService(self.store, training.workers)
        self.guard: Guard | None = None
        self.guarding: GuardConfig | None = None
        self.guard_state: Mapping[str, Any] | None = None
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
            training.shuffle_window,
        )
        self.engine = Engine(self.accelerator, self._maker, self.features, training, seed)

    # -- learning ---------------------------------------------------------------------------------------------

    def past(self) -> Past:
        """Return the past data that the method may use."""
        return Past(tuple(self.tasks), self.base, self.training, self.seed, self.reference, self._embed)

    def _embed(self, table: Table) -> torch.Tensor:
        """Return unit embeddings `(N, D)` of a table's images under the method in its present state."""
        self.method.eval()
        encoder = image_encoder(self.method, self.method.encoder_keys())
        return self.features.images(encoder, TablePictures.of(table))["embedding"]

    @property
    def counts_macs(self) -> bool:
        """Whether it counts the multiply-accumulates of each task."""
        return self.training.macs is not None or self.training.count_macs

    def plan(self, task: Task, cursor: Cursor | None = None) -> list[Phase]:
        """Return the phases for learning `task` now.

        Args:
            task: the task.
            cursor: a position in it; a budget in multiply-accumulates decides the steps once the task has begun.
        """
        task = numbered(task, self.next_index)
        phases = one_pass(self.method.plan(task, self.past()), task, self.training, self.method)
        return (
            within_macs(phases, self.training, cursor.macs) if cursor is not None and cursor.macs else phases
        )

    def begin(self, task: Task, cursor: Cursor) -> None:
        """Begin to learn a task, if the cursor is before its beginning: grow the method, count what a step computes.

        `learn` does this itself; a run does it before, to know the number of steps.

        Raises:
            ConfigError: if the task's number was learned already, or it does not fit the method.
        """
        if cursor.begun:
            return
        require_new(task, self.learned)
        if self.method.chooses_on_validation:
            require_pictures([*self.tasks, task], self.base_val)  # now, not after hours of training
        self.method.begin_task(task, self.past())
        self._maker.forget_tokens()
        cursor.begun = True
        if self.counts_macs:
            cursor.macs = count_macs(self.engine, self.method, self.plan(task))

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
            task: from a scenario or from `everclip.make_task`; a task without a number gets the next one.
            cursor: where to continue; kept up to date, so that a watcher can save it.
            watcher: follows the steps.
            show: whether to show progress if there is no watcher; `None` means on a terminal.

        Returns:
            The task that was learned, with its number; not learned to its end if the watcher paused (`cursor.paused`).

        Raises:
            ConfigError: if `task` is not a task, its number was learned already, or a batch is one pair.
            DataError: if there is nothing to learn: only one text or one image.
            DivergedError: if the loss became NaN, infinite or exploded.
        """
        task = require_task(task)
        if self.live is not None:
            raise ConfigError(
                "learn: this learner follows a stream of batches (observe); tasks need another one."
            )
        self.remember()
        task = numbered(task, self.next_index)
        cursor = cursor or Cursor()
        new = (cursor.phase, cursor.repeat, cursor.step) == (0, 0, 0)
        if not cursor.begun:
            require_new(task, self.learned)
        self.engine.may_idle = task.once or learnable.may_idle(
            self.method, task, self.training.batch_size, self.past(), announced=watcher is not None or not new
        )
        self.begin(task, cursor)
        # Not the number of the task: the first one that is learned may have any.
        self.engine.new_start = not self.learned or starting(self.method) != "previous"
        phases = self.plan(task, cursor)
        self.pictures.add(phases)
        guard = self.guard if any(phase.optimiser is not None for phase in phases) else None
        if guard is not None and new:
            guard.begin_task(self.method, len(self.learned))
        watcher = watcher or learn_progress(task, phases, self.training, show)
        run_phases(self.engine, self.method, task, phases, cursor, watcher, guard)
        self.method.eval()
        if cursor.paused:
            return task
        self.method.end_task(task, self.past(), lambda: self._validate(task))
        note = None if guard is None else guard.end_task(self.method)
        if note is not None:
            self.method.notes["guard"] = note
        if cursor.macs:
            spent = macs_of(phases, self.training, cursor.macs)
            self.compute.append({"task": task.name, "macs": spent, "per_step": dict(cursor.macs)})
        self.engine.columns.release()
        self.tasks.append(task)
        self.learned |= set(task.covers or (task.index,))
        return task

    def observe(
        self, data: UserData, *, templates: GivenTemplates = ("{}",), again: bool = False
    ) -> Observed:
        """Learn from one batch of an endless stream; `classify` and `save` work at any time in between.

        The batch is learned in `training.steps_per_batch` steps at the constant rate `training.lr`: where the stream
        ends is not known, so `training.schedule`, `warmup` and a budget in steps, epochs or samples do not apply; a
        budget in multiply-accumulates is refused. With `training.count_macs`, `compute` holds what the steps so far
        computed. New classes may appear in any batch. The buffer of `replay` keeps copies of its samples. An empty
        batch changes nothing.

        Args:
            data: the samples, in a form that `everclip.make_task` takes; all of them have classes, or none has.
            templates: texts around names of classes.
            again: whether to learn samples that were seen before. Otherwise they are left out: those with the same
                `id`; without ids, those with the same image and, where they have no class, the same caption.

        Raises:
            ConfigError: if the method needs to know where a task begins, this learner has learned tasks, or
                `training.macs` is set.
            DataError: if the data cannot be read, or only some samples have a class.
        """
        return observe(self, data, templates_of(templates, "observe: templates"), again)

    @property
    def next_index(self) -> int:
        """The number of the next task."""
        return max(self.learned, default=-1) + 1

    def remember(self) -> None:
        """Read the stream that a run learned from, if the method needs its data to continue (replay, merging)."""
        if self.recall is not None:
            recall, self.recall = self.recall, None
            scenario = recall()
            self.follow(scenario)
            self.tasks = [t for t in scenario.tasks if t.index in self.learned]
            if self.guarding is not None:
                self.watch(watchable(scenario), self.guarding)

    def follow(self, scenario: ListScenario) -> None:
        """Use the base and reference data of a stream, and the label space of its headline."""
        self.base, self.base_val, self.reference = scenario.base, scenario.base_val, scenario.reference
        spaces = {p.name: p.space for p in scenario.protocols}
        self.own_classes = spaces.get(scenario.shown_protocol) in ("own", "learned")

    def watch(self, sets: Sequence[EvalSet], config: GuardConfig | None = None) -> Guard:
        """Let a retention guard measure `sets` while tasks are learned. Do not use sets of the evaluation.

        Args:
            sets: the sets to measure.
            config: the limits; default: those of the preset (such as `safe`), else a drop of one point.

        Raises:
            ConfigError: if `config` names none of the sets, or no limit.
        """
        current = GuardConfig(max_drop=1.0)
        if self.guard is not None:  # keep the limits and reference scores of the present guard
            current, self.guard_state = self.guard.config, self.guard.state()
        self.guard, self.guarding = Guard(config or current, sets, self.features), None
        if self.guard_state is not None:
            self.guard.restore({}, self.guard_state)
        return self.guard

    def _validate(self, task: Task) -> Mapping[str, float]:
        tasks = [*self.tasks, task]
        return validation_scores(self.method, tasks, self.base_val, self.features, self.own_classes)

    # -- predicting -------------------------------------------------------------------------------------------

    def encode(self, images: ImageInputs = (), texts: TextInputs = ()) -> dict[str, torch.Tensor]:
        """Return unit embeddings `images` `(N, D)` and `texts` `(M, D)` of what was passed, float32 on the CPU.

        Args:
            images: one image or several: paths (`~` is expanded), encoded bytes, PIL images, arrays `(H, W, 3)`.
            texts: one text or several, encoded without templates.

        Raises:
            ConfigError: if a path names no file, or a value is not an image or text.
            DataError: if an image cannot be read.
        """
        return predicting.encode(self.method, images, texts)

    @overload
    def classify(
        self,
        images: ImageInputs,
        names: TextInputs | None = ...,
        templates: GivenTemplates = ...,
        *,
        top: None = None,
    ) -> list[tuple[str, float]]: ...

    @overload
    def classify(
        self,
        images: ImageInputs,
        names: TextInputs | None = ...,
        templates: GivenTemplates = ...,
        *,
        top: int,
    ) -> list[list[tuple[str, float]]]: ...

    def classify(
        self,
        images: ImageInputs,
        names: TextInputs | None = None,
        templates: GivenTemplates = ("{}",),
        *,
        top: int | None = None,
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """Return the best name of each image with its cosine; with `top`, a list of the `top` best names.

        Args:
            images: see `encode`.
            names: the names to choose from; default: the classes that `observe` has seen, with their templates.
            templates: texts around names.
            top: how many names.

        Raises:
            ConfigError: if there are no names to choose from, or a template has no `{}`.
        """
        if names is None:
            seen = () if self.live is None else self.live.classes
            names, templates = [entry.name for entry in seen], seen[0].templates if seen else templates
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
        """Score the learner in its present state.

        Args:
            on: a scenario (every evaluation set under every protocol), or data in a form that `make_task` takes. Of
                data, the test rows are scored if a column `split` marks some, else all rows: by pairs of images if
                there is a column `pair`, by retrieval if there are captions, else by classification among their own
                classes.
            config: top-k, confidence, batch size.
            templates: texts around class names.

        Returns:
            `[set][protocol][metric]` -> `Score` with its interval.
        """
        return scoring.evaluate(self, on, config, templates)

    # -- state ------------------------------------------------------------------------------------------------

    def tensors(self, optimiser: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return every tensor that continuing needs: weights, tensors of the method, moments of the optimiser."""
        return continuing.tensors_of(self, optimiser)

    def state(self, cursor: Cursor) -> dict[str, Any]:
        """Return the JSON that continuing needs besides tensors."""
        return continuing.state_of(self, cursor)

    def restore(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Cursor:
        """Restore what `tensors` and `state` returned; the method grows if needed.

        Raises:
            CheckpointError: if the tensors do not fit the model.
        """
        return continuing.restore(self, tensors, state)

    def save(self, folder: Path | str) -> Path:
        """Save the learner (between tasks) in `folder`: weights, settings, and the samples in its buffer.

        Raises:
            ConfigError: for a URL.
            RunFolderError: if the folder belongs to a run, which has its own checkpoints.
        """
        if is_remote(str(folder)):
            raise ConfigError(f"save: {folder} is a URL; expected a path on this machine.")
        return saved.save(self, user_path(folder, "save"))

    @classmethod
    def create(
        cls,
        backbone: str | PathLike[str] | Mapping[str, Any] = "builtin:photo",
        method: str = "finetune",
        training: Mapping[str, Any] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Learner:
        """Build a learner from names.

        Args:
            backbone: a name, or the settings of `BackboneConfig`: `{"name": "ViT-B-32", "weights": "file.pt"}`.
            method: a preset, or `file.py:Class`.
            training: settings that differ from the defaults of `TrainingConfig`; default budget: five epochs per task.
            seed: enters every random draw.
            settings: settings of the method, such as `replay={"size": 100}`.
        """
        parts = creating.parts_of(backbone, method, training, seed, settings)
        learner = cls(parts.method, parts.training, seed)
        if parts.guard.max_drop is not None:  # there is nothing to watch yet; `learn` says so
            learner.watch((), parts.guard)
        return learner

    @classmethod
    def load(cls, folder: Path | str, scenario: ListScenario | None = None) -> Learner:
        """Load the newest good checkpoint of a run folder, or a learner that `save` wrote.

        Args:
            folder: the folder, or the URL of a run folder.
            scenario: the stream that a run learned from, whose samples its buffer refers to; default: read it from
                the settings of the run. A saved learner keeps these samples, and predicting needs none.

        Raises:
            CheckpointError: if there is no checkpoint.
        """
        return saved.load(cls, local_run(folder, "load"), scenario)
