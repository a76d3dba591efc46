"""The learner: a method, what it has learned, and the engine that trains it. Runs are loops over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from accelerate import Accelerator
from PIL import Image

from everclip.config import (
    BackboneConfig,
    CheckpointConfig,
    EvaluationConfig,
    MethodConfig,
    RunConfig,
    TrainingConfig,
    merge,
    merge_training,
    validated,
)
from everclip.contracts import ClassEntry, LabelSpace, Past, Phase, Task
from everclip.data.batches import BatchMaker, share_of
from everclip.data.images import ImageStore, decode
from everclip.data.table import Table
from everclip.errors import CheckpointError, ConfigError, RunFolderError
from everclip.evaluation.banks import device_of, encode_prompts
from everclip.evaluation.encode import Encoder
from everclip.evaluation.results import Score
from everclip.evaluation.scoring import RowScorer
from everclip.evaluation.validation import validation_scores
from everclip.files import write_text_atomic
from everclip.methods.base import Method
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.registry import method_entry, read_yaml
from everclip.scenarios.base import ListScenario
from everclip.training.checkpoint import Checkpoints
from everclip.training.engine import Engine, Hooks, StepLog
from everclip.training.processes import start_processes
from everclip.training.run_folder import CONFIG

Optimiser = Callable[[], dict[str, torch.Tensor]]
Scores = dict[str, dict[str, dict[str, Score]]]


@dataclass
class Cursor:
    """Where learning stands inside a task; all of it goes into a checkpoint."""

    phase: int = 0
    repeat: int = 0
    step: int = 0
    begun: bool = False
    optimiser: dict[str, torch.Tensor] = field(default_factory=dict)


class Watcher(Protocol):
    """What a loop over a learner wants to know; see `everclip.training.engine.Hooks`."""

    def after_step(self, log: StepLog) -> bool:
        """Count a step; return whether a checkpoint is due."""

    def report(self, logs: Sequence[StepLog]) -> None:
        """Show and record steps."""

    def save(self, cursor: Cursor, optimiser: Optimiser) -> None:
        """Write a checkpoint."""


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
        self.method = method.to(self.accelerator.device)
        self.training, self.seed = training, seed
        self.base, self.base_val = base, base_val
        self.tasks: list[Task] = []
        self.learned: set[int] = set()
        self.store = ImageStore()
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
        )
        self.engine = Engine(self.accelerator, self._maker, training, seed)

    # -- learning ---------------------------------------------------------------------------------------------

    def past(self) -> Past:
        """Return what the method may look back on."""
        return Past(tuple(self.tasks), self.base, self.training, self.seed)

    def plan(self, task: Task) -> list[Phase]:
        """Return the phases that learning `task` now would take."""
        return self.method.phases(task, self.past())

    def learn(self, task: Task, cursor: Cursor | None = None, watcher: Watcher | None = None) -> None:
        """Learn one task, or the rest of it.

        Args:
            task: what to learn.
            cursor: where to go on; kept up to date, so that a watcher can save it.
            watcher: follows the steps.

        Raises:
            DivergedError: if the loss became NaN, infinite or exploded.
        """
        cursor = cursor or Cursor()
        if not cursor.begun:
            self.method.begin_task(task, self.past())
            cursor.begun = True
        phases = self.plan(task)
        while cursor.phase < len(phases):
            phase = phases[cursor.phase]
            while cursor.repeat < phase.repeats:
                self._run_phase(task, phase, cursor, watcher)
                cursor.repeat, cursor.step, cursor.optimiser = cursor.repeat + 1, 0, {}
            self.method.end_phase(task, phase)
            cursor.phase, cursor.repeat = cursor.phase + 1, 0
        self.method.eval()
        self.method.end_task(task, self.past(), lambda: self._validate(task))
        self.tasks.append(task)
        self.learned |= set(task.covers or (task.index,))

    def _run_phase(self, task: Task, phase: Phase, cursor: Cursor, watcher: Watcher | None) -> None:
        # Reading a loss makes a GPU wait for it; on a CPU it costs nothing.
        hooks = Hooks(inspect_every=1 if self.accelerator.device.type == "cpu" else 10)
        if watcher is not None:

            def save(step: int, optimiser: Optimiser) -> None:
                cursor.step = step
                watcher.save(cursor, optimiser)

            hooks = Hooks(watcher.after_step, watcher.report, save, hooks.inspect_every)
        start, state = cursor.step, cursor.optimiser
        cursor.optimiser = {}
        self.engine.run(self.method, phase, task.index, cursor.repeat, hooks, start, state)

    def _validate(self, task: Task) -> Mapping[str, float]:
        return validation_scores(self.method, [*self.tasks, task], self.base_val, self.store)

    # -- predicting -------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(
        self, images: Iterable[str | Path | bytes | Image.Image] = (), texts: Sequence[str] = ()
    ) -> dict[str, torch.Tensor]:
        """Return unit embeddings: `images` `(N, D)` and `texts` `(M, D)`, as far as given, float32 on the CPU."""
        self.method.eval()
        found = {}
        device, parts = device_of(self.method), []
        for block in _blocks(images):
            pixels = torch.stack([self.method.backbone.preprocess(self._picture(image)) for image in block])
            parts.append(self.method.encode_images(pixels.to(device))["embedding"].float().cpu())
        if parts:
            found["images"] = torch.cat(parts)
        if texts:
            found["texts"] = encode_prompts(self.method, texts)["embedding"]
        return found

    @torch.inference_mode()
    def classify(
        self,
        images: Iterable[str | Path | bytes | Image.Image],
        names: Sequence[str],
        templates: Sequence[str] = ("{}",),
    ) -> list[tuple[str, float]]:
        """Return the best name and its cosine for each picture.

        Raises:
            ConfigError: if there are no names to choose from.
        """
        if not names:
            raise ConfigError("classify: no names to choose from.")
        space = LabelSpace(tuple(ClassEntry(n, n, tuple(templates)) for n in names))
        features = self.encode(images)
        if not features:
            return []
        bank = self.method.class_bank(space)
        scores = self.method.class_scores({"embedding": features["images"]}, space, bank)
        best = scores.max(dim=1)
        return [(names[int(i)], float(v)) for v, i in zip(best.values, best.indices, strict=True)]

    def evaluate(self, scenario: ListScenario, config: EvaluationConfig | None = None) -> Scores:
        """Score the learner as it is now on every evaluation set of a scenario, under every protocol.

        Returns:
            `[set][protocol][metric]` -> `Score` with its interval.
        """
        settings = config or EvaluationConfig()
        backbone = self.method.backbone
        encoder = Encoder(scenario.eval_sets, backbone.preprocess, self.store, settings.batch_size)
        scorer = RowScorer(scenario, encoder, settings, self.seed, {})
        return scorer.row(self.method, self.learned, lambda done, total: None).scores

    @staticmethod
    def _picture(image: str | Path | bytes | Image.Image) -> Image.Image:
        if isinstance(image, Image.Image):
            return image.convert("RGB")
        if isinstance(image, bytes):
            return decode(image, "picture")
        path = Path(image)
        if not path.is_file():
            raise ConfigError(f"{path}: no such picture.")
        return decode(path.read_bytes(), str(path))

    # -- state ------------------------------------------------------------------------------------------------

    def tensors(self, optimiser: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return every tensor that continuing needs: weights, what the method keeps, the optimiser's moments."""
        state = {f"model/{k}": v for k, v in self.method.state_dict().items()}
        state |= {f"extra/{k}": v for k, v in self.method.extra_tensors().items()}
        return state | {f"optimiser/{k}": v for k, v in optimiser.items()}

    def state(self, cursor: Cursor) -> dict[str, Any]:
        """Return the JSON that continuing needs besides tensors."""
        place = {"phase": cursor.phase, "repeat": cursor.repeat, "step": cursor.step, "begun": cursor.begun}
        return {
            "cursor": place,
            "learned": sorted(self.learned),
            "structure": self.method.structure(),
            "method": self.method.extra_state(),
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Cursor:
        """Put back what `tensors` and `state` returned; the method may have grown in between."""
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "extra": {}, "optimiser": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            parts[kind][name] = tensor
        self.learned = set(state["learned"])
        self.method.grow(state["structure"])
        self.method.to(self.accelerator.device)
        self.method.load_state_dict(parts["model"])
        device = self.accelerator.device
        self.method.load_extra({k: v.to(device) for k, v in parts["extra"].items()}, state["method"])
        cursor = Cursor(**state["cursor"])
        cursor.optimiser = parts["optimiser"]
        if cursor.begun:
            self.method.mark_trainable()
        return cursor

    def save(self, folder: Path | str) -> Path:
        """Save the learner as it is now (between tasks) as a checkpoint in `folder`, with its settings.

        Raises:
            RunFolderError: if the folder belongs to a run, whose own checkpoints this would spoil.
        """
        folder = Path(folder)
        if (folder / CONFIG).is_file() and "benchmark" in read_yaml(folder / CONFIG):
            raise RunFolderError(f"{folder} belongs to a run; save the learner in a folder of its own.")
        checkpoints = Checkpoints(folder, CheckpointConfig())
        path = checkpoints.save(self.tensors({}), {**self.state(Cursor()), "kind": "learner"})
        document = {
            "backbone": self.method.backbone.config.model_dump(mode="json"),
            "method": {"name": self.method.preset, "settings": self.method.settings.model_dump(mode="json")},
            "training": self.training.model_dump(mode="json"),
            "seed": self.seed,
        }
        write_text_atomic(folder / CONFIG, yaml.safe_dump(document, sort_keys=False))
        return path

    @classmethod
    def create(
        cls,
        backbone: str = "builtin:tiny",
        method: str = "finetune",
        training: Mapping[str, Any] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Learner:
        """Build a learner from names: a backbone, a method preset with settings, and a training configuration."""
        entry = method_entry(method)
        chosen = MethodConfig(name=entry.name, settings=merge(entry.settings, settings))
        config = validated(TrainingConfig, merge_training({"epochs": 5}, training or {}), "training")
        return cls(
            build_method(chosen, load_backbone(BackboneConfig(name=backbone), seed), seed), config, seed
        )

    @classmethod
    def load(cls, folder: Path | str, scenario: ListScenario | None = None) -> Learner:
        """Load the newest good checkpoint of a run folder, or what `save` wrote.

        Args:
            folder: where it is.
            scenario: the stream it learned from. Needed to learn on with replay (a buffer refers to samples of
                earlier tasks), not to predict.

        Raises:
            CheckpointError: if there is none.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise CheckpointError(
                f"{folder}: expected a run folder with {CONFIG} and checkpoints/; there is none."
            )
        document = read_yaml(folder / CONFIG)
        found = Checkpoints(folder, CheckpointConfig()).latest()
        if found is None:
            raise CheckpointError(f"{folder}: there is no checkpoint yet.")
        backbone_config = BackboneConfig(**document["backbone"])
        backbone = load_backbone(backbone_config, document["seed"])
        method = build_method(MethodConfig(**document["method"]), backbone, document["seed"])
        training = TrainingConfig(**document["training"])
        known = (None, None) if scenario is None else (scenario.base, scenario.base_val)
        learner = cls(method, training, document["seed"], None, *known)
        # A run keeps the learner's state beside its own place; `save` writes the learner's alone.
        state = found.state.get("learner", found.state)
        learner.restore({k: v for k, v in found.tensors.items() if not k.startswith("optimiser/")}, state)
        learner.tasks = [t for t in scenario.tasks if t.index in learner.learned] if scenario else []
        return learner


def _blocks(images: Iterable[Any], size: int = 256) -> Iterator[list[Any]]:
    rest = iter(images)
    while block := list(itertools.islice(rest, size)):
        yield block
