"""Save and load a learner: `save` writes everything that continuing needs; `load` also reads a run's checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from everclip.config import (
    BackboneConfig,
    CheckpointConfig,
    Frozen,
    GuardConfig,
    MethodConfig,
    TrainingConfig,
    validated,
)
from everclip.contracts import ClassEntry, EvalSet, Task
from everclip.data.sampling.order import unit_hash
from everclip.data.table import Table
from everclip.errors import CheckpointError, RunFolderError
from everclip.files import require_writable, write_bytes_atomic, write_text_atomic
from everclip.learner.learned_images import LearnedImages, read_learned
from everclip.learner.observing import LiveStream, restored
from everclip.methods.base import Method
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.registry import read_yaml
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.training.checkpoint import Checkpoints
from everclip.training.guard import Guard
from everclip.training.run_folder import CONFIG
from everclip.training.watching import Cursor

PAST = "past"
"""The folder beside the checkpoints with the samples of earlier tasks that a saved learner keeps."""

LIVE_SEEN = "live/seen"
"""The tensor that names the samples that a stream of batches has seen."""

KEPT_VALIDATION = 1000
"""The most validation rows kept per task, chosen by hash: choices after later tasks score the old tasks on them."""


class _Settings(Frozen):
    """The part of the configuration of a run or a saved learner that builds the learner."""

    backbone: BackboneConfig
    method: MethodConfig
    training: TrainingConfig
    seed: int
    guard: GuardConfig = GuardConfig()
    directory: str | None = None


class StoredLearner(Protocol):
    """The interface of a learner that saving and loading use; see `everclip.Learner`."""

    method: Method
    training: TrainingConfig
    seed: int
    base: Table | None
    base_val: Table | None
    own_classes: bool
    tasks: list[Task]
    live: LiveStream | None
    recall: Callable[[], ListScenario] | None
    pictures: LearnedImages
    guard: Guard | None
    guarding: GuardConfig | None

    @property
    def next_index(self) -> int:
        """The number of the next task."""

    def remember(self) -> None:
        """Read the stream that a run learned from, where the method needs its data."""

    def watch(self, sets: Sequence[EvalSet], config: GuardConfig | None = None) -> Guard:
        """Let a retention guard measure sets."""

    def tensors(self, optimiser: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return every tensor that continuing needs."""

    def state(self, cursor: Cursor) -> dict[str, Any]:
        """Return the JSON that continuing needs."""

    def restore(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Cursor:
        """Restore the learner from both."""


L = TypeVar("L", bound=StoredLearner)


def save(learner: StoredLearner, folder: Path) -> Path:
    """See `everclip.Learner.save`."""
    require_writable(folder, "save")
    if (folder / CONFIG).is_file() and "benchmark" in read_yaml(folder / CONFIG):
        raise RunFolderError(f"{folder} belongs to a run; save the learner in a folder of its own.")
    learner.remember()
    past = [_store_task(learner, folder, task) for task in learner.tasks]
    base = _store_base(learner, folder)
    state = {**learner.state(Cursor()), "kind": "learner", "past": past, "base": base}
    state["own_classes"] = learner.own_classes
    guard = learner.guard
    if guard is not None:
        state["watched"] = [_store_set(folder, s) for s in guard.sets]
    tensors = learner.tensors({})
    if learner.live is not None:
        state["live"] = {**learner.live.state(), "stored": _write(folder, "stream", learner.live.stored)}
        tensors = {**learner.tensors(learner.live.optimiser), LIVE_SEEN: learner.live.seen_tensor()}
    path = Checkpoints(folder, CheckpointConfig()).save(tensors, state)
    document = {
        "backbone": learner.method.backbone.config.model_dump(mode="json"),
        "method": {
            "name": learner.method.preset,
            "settings": learner.method.settings.model_dump(mode="json"),
        },
        "training": learner.training.model_dump(mode="json"),
        "seed": learner.seed,
        "directory": learner.method.backbone.directory or os.getcwd(),
    }
    if guard is not None:
        document["guard"] = guard.config.model_dump(mode="json")
    write_text_atomic(folder / CONFIG, yaml.safe_dump(document, sort_keys=False))
    learner.pictures.write(folder)
    return path


def _store_task(learner: StoredLearner, folder: Path, task: Task) -> dict[str, Any]:
    """Write a task's samples in the buffer and some of its validation rows; return its description."""
    buffer = learner.method.buffer
    wanted = (
        set() if buffer is None else {i for origin, i, _ in buffer.items if origin == f"task {task.index}"}
    )
    train = task.train.select([n for n, name in enumerate(task.train.ids) if name in wanted])
    return {
        "index": task.index,
        "name": task.name,
        "language": task.language,
        "time": task.time,
        "covers": list(task.covers),
        "classes": None if task.classes is None else [asdict(entry) for entry in task.classes],
        "train": _write(folder, f"task-{task.index}-train", train),
        "val": _write(
            folder, f"task-{task.index}-val", None if task.val is None else _validation_sample(task.val)
        ),
    }


def _store_base(learner: StoredLearner, folder: Path) -> dict[str, Any] | None:
    if learner.base is None:
        return None
    buffer = learner.method.buffer
    wanted = set() if buffer is None else {i for origin, i, _ in buffer.items if origin == "base"}
    base = learner.base.select([n for n, name in enumerate(learner.base.ids) if name in wanted])
    held = None if learner.base_val is None else _validation_sample(learner.base_val)
    return {"train": _write(folder, "base-train", base), "val": _write(folder, "base-val", held)}


def _store_set(folder: Path, s: EvalSet) -> dict[str, Any]:
    """Write all rows of a set that the guard measures: its reference score was measured on exactly these rows."""
    classes = None if s.classes is None else [asdict(entry) for entry in s.classes]
    data = _write(folder, "watched", s.data)  # the file name contains a hash of the rows
    return {"name": s.name, "kind": s.kind, "classes": classes, "data": data}


def _eval_set(folder: Path, kept: dict[str, Any]) -> EvalSet:
    data = _table(folder, kept["data"], kept["name"])
    assert data is not None
    return EvalSet(kept["name"], kept["kind"], data, None, "retention", _classes(kept["classes"]))


def _validation_sample(table: Table) -> Table:
    order = sorted(range(len(table)), key=lambda i: unit_hash("kept", table.ids[i]))
    return table.select(sorted(order[:KEPT_VALIDATION]))


def _write(folder: Path, name: str, table: Table | None) -> str | None:
    """Write rows under the hash of their content, so that a crash leaves the files of an earlier save intact."""
    if table is None:
        return None
    file = f"{PAST}/{name}-{table.fingerprint}.parquet"
    if not (folder / file).is_file():
        sink = pa.BufferOutputStream()
        pq.write_table(table.arrow(), sink)
        write_bytes_atomic(folder / file, sink.getvalue().to_pybytes())
    return file


def load(cls: Callable[[Method, TrainingConfig, int], L], folder: Path, scenario: ListScenario | None) -> L:
    """See `everclip.Learner.load`."""
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: expected the folder of a run or a saved learner, with {CONFIG} and checkpoints/; there is no "
            f"{CONFIG}."
        )
    document = read_yaml(file)
    found = Checkpoints(folder, CheckpointConfig()).latest()
    if found is None:
        raise CheckpointError(f"{folder}: there is no checkpoint yet.")
    # A run stores the learner's state inside its own state; `save` writes only the learner's.
    return assembled(cls, folder, document, found.tensors, found.state, scenario)


def assembled(
    cls: Callable[[Method, TrainingConfig, int], L],
    folder: Path,
    document: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    scenario: ListScenario | None = None,
) -> L:
    """Build a learner from what `save` or a run wrote.

    Args:
        cls: the class of the learner.
        folder: holds the samples of earlier tasks (`past/`).
        document: the settings (`config.yaml`).
        tensors, state: of the checkpoint.
        scenario: see `everclip.Learner.load`.
    """
    file = folder / CONFIG
    settings = validated(
        _Settings, {k: document[k] for k in _Settings.model_fields if k in document}, str(file)
    )
    backbone = load_backbone(settings.backbone, settings.seed, settings.directory)
    method = build_method(settings.method, backbone, settings.seed)
    learner = cls(method, _for_this_machine(settings.training, folder), settings.seed)
    of_learner = state.get("learner", state)
    kept = {k: v for k, v in tensors.items() if not k.startswith(("optimiser/", LIVE_SEEN))}
    cursor = learner.restore(kept, of_learner)
    if "live" in of_learner:
        _load_live(learner, folder, of_learner["live"], tensors)
    if cursor.begun:
        logging.getLogger("everclip").warning(
            "%s: the run stopped inside task %d (step %d of a phase): this is the model at that step, before any "
            "merge; to learn the whole task, finish the run first (repeat its command)",
            folder,
            learner.next_index + 1,  # the progress line counts from 1, too
            cursor.step,
        )
    learner.pictures = read_learned(folder)
    learner.guarding = settings.guard if settings.guard.max_drop is not None else None
    if scenario is not None:
        learner.recall = lambda: scenario
        learner.remember()
    elif state.get("kind") == "learner":
        _load_past(learner, folder, state)
    elif "scenario" in document:
        # Read only when learning continues: predicting needs no data.
        learner.recall = lambda: load_scenario(document["scenario"], directory=settings.directory)
    return learner


def _load_live(
    learner: StoredLearner, folder: Path, state: dict[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Continue a stream of batches (`Learner.observe`) where it was saved."""
    stored = _table(folder, state["stored"], "stored")
    prefix = "optimiser/"
    optimiser = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    learner.live = restored(state, tensors[LIVE_SEEN], stored, optimiser)
    learner.method.mark_trainable()


def _for_this_machine(training: TrainingConfig, folder: Path) -> TrainingConfig:
    """Return settings for this machine: a learner from a GPU runs on the CPU if there is no GPU, with a warning."""
    if torch.cuda.is_available():
        return training
    needs_gpu = {"device": training.device == "cuda", "precision": training.precision == "fp16"}
    changed = {key: "auto" for key, needed in needs_gpu.items() if needed}
    if changed:
        logging.getLogger("everclip").warning(
            "%s: %s needs a GPU, and torch sees none: the CPU is used, in fp32, so results differ in low bits",
            folder,
            ", ".join(f"training.{key}={getattr(training, key)}" for key in changed),
        )
    return training.model_copy(update=changed)


def _load_past(learner: StoredLearner, folder: Path, state: Mapping[str, Any]) -> None:
    learner.tasks = [_task(folder, kept) for kept in state.get("past", [])]
    learner.own_classes = bool(state.get("own_classes", False))
    base = state.get("base")
    if base is not None:
        learner.base = _table(folder, base["train"], "base")
        learner.base_val = _table(folder, base["val"], "base")
    if learner.guarding is not None:
        watched = [_eval_set(folder, kept) for kept in state.get("watched", [])]
        learner.watch(watched, learner.guarding)


def _task(folder: Path, kept: dict[str, Any]) -> Task:
    train = _table(folder, kept["train"], kept["name"])
    assert train is not None  # written for every task, without rows if the buffer holds none
    return Task(
        index=kept["index"],
        name=kept["name"],
        train=train,
        val=_table(folder, kept["val"], kept["name"]),
        classes=_classes(kept["classes"]),
        language=kept["language"],
        time=kept["time"],
        covers=tuple(kept["covers"]),
    )


def _classes(found: Sequence[dict[str, Any]] | None) -> tuple[ClassEntry, ...] | None:
    if found is None:
        return None
    return tuple(
        ClassEntry(**{**entry, "templates": tuple(entry["templates"]), "tasks": tuple(entry["tasks"])})
        for entry in found
    )


def _table(folder: Path, file: str | None, name: str) -> Table | None:
    if file is None:
        return None
    if not (folder / file).is_file():
        raise CheckpointError(
            f"{folder / file}: missing; it holds samples of earlier tasks that the saved learner needs."
        )
    try:
        return Table(pq.read_table(folder / file), name=name)
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(f"{folder / file}: cannot be read ({error}).") from error
