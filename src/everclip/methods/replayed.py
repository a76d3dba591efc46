"""Use the buffer in a phase: mix stored samples into its batches, and give penalties a stream of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from everclip.contracts import ClassEntry, Past, Source, Stream, Task
from everclip.data.table import Table
from everclip.errors import ConfigError
from everclip.methods.labels import REPLAYED_CAPTIONS, all_have_classes
from everclip.methods.penalties.lwf import MEMORY
from everclip.methods.settings import ReplaySettings, SlotsWithoutReplay
from everclip.scenarios.base import merge_entries
from everclip.training.buffer import Buffer
from everclip.training.stream_memory import BufferMemory

UNUSED = "replay.use: no penalty uses the stored samples (lwf with images=memory does)"
"""The note of a phase if samples are stored for penalties but no penalty uses them."""


@dataclass(frozen=True)
class PhaseData:
    """The data of a phase: the task's own samples together with those of the buffer.

    Attributes:
        sources: of the stream `main`.
        classes: its classes; `None` if captions are learned.
        memory: the stored samples for penalties; `None` without.
        stretch: factor on the steps.
        notes: for people.
    """

    sources: tuple[Source, ...]
    classes: tuple[ClassEntry, ...] | None
    memory: Table | None = None
    stretch: float = 1.0
    notes: tuple[str, ...] = ()


def open_buffer(buffer: Buffer, replay: ReplaySettings, task: Task, past: Past) -> None:
    """Choose the groups of a buffer, and offer the base to it if it is empty.

    Idempotent, so that planning can call it as well.
    """
    if replay.per == "class" or (replay.per == "auto" and task.classes is not None):
        buffer.by_class()
    if replay.base and buffer.seen == 0 and past.base is not None:
        buffer.offer("base", past.base)


def stored_rows(buffer: Buffer, replay: ReplaySettings, task: Task, past: Past) -> tuple[Table, ...]:
    """Return the samples in the buffer for learning a task: one table per exact share; empty if there are none."""
    open_buffer(buffer, replay, task, past)
    parts = buffer.parts(_origins(past))
    return tuple(parts) if replay.exact or not parts else (Table.concat(parts, "replay"),)


def _origins(past: Past) -> Mapping[str, Table]:
    """Return the tables that the samples of a buffer come from, by origin."""
    tables = {f"task {task.index}": task.train for task in past.tasks}
    return tables if past.base is None else {**tables, "base": past.base}


def mix(
    task: Task,
    classes: tuple[ClassEntry, ...] | None,
    stored: tuple[Table, ...],
    settings: SlotsWithoutReplay,
    past: Past,
) -> PhaseData:
    """Decide the content of a task's batches.

    Args:
        task: the task to learn.
        classes: its classes, if it is learned by them.
        stored: the samples in the buffer, one table per share.
        settings: of the method.
        past: the earlier tasks, to which replayed samples belong.
    """
    task_only = (Source(task.train),)
    replay = settings.replaying
    if not stored:
        return PhaseData(task_only, classes)
    used = any(penalty.get("images") == MEMORY for penalty in settings.penalties.values())
    memory = _joined(stored) if replay.use != "train" and used else None
    notes = () if replay.use == "train" or used else (UNUSED,)
    if replay.use == "distil":
        return PhaseData(task_only, classes, memory, notes=notes)
    total = sum(map(len, stored))
    share = replay.share
    share = total / (total + len(task.train)) if share is None else share
    earlier = [entry for t in past.tasks for entry in t.classes or ()]
    classes = merge_entries([*earlier, *classes]) if classes else None
    if classes and settings.loss == "auto" and not all(all_have_classes(part, classes) for part in stored):
        classes, notes = None, (*notes, REPLAYED_CAPTIONS)
    stretch = 1 / (1 - share) if replay.beside else 1.0
    replayed = tuple(Source(part, share * len(part) / total) for part in stored)
    return PhaseData((Source(task.train, 1 - share), *replayed), classes, memory, stretch, notes)


def _joined(tables: tuple[Table, ...]) -> Table:
    return tables[0] if len(tables) == 1 else Table.concat(tables, "replay")


def with_memory(stream: Stream, task: Task, buffer: Buffer, past: Past, replay: ReplaySettings) -> Stream:
    """Return the stream of a task that is seen once, with stored samples in each batch.

    Raises:
        ConfigError: for settings that such a stream does not allow.
    """
    whole = replay.kind == "herding" or replay.by_task
    if whole or replay.use != "train" or replay.base or replay.share is None:
        raise ConfigError(
            "method.replay: a stream that is seen once fills its buffer batch by batch, so `kind` is reservoir, "
            "balanced or all, `use` is train, `base` is false and `share` a number; found "
            f"kind={replay.kind}, use={replay.use}, base={str(replay.base).lower()}, share={replay.share}."
        )
    open_buffer(buffer, replay, task, past)
    total = stream.batch_size
    stored = (
        round(total * replay.share / (1 - replay.share)) if replay.beside else round(total * replay.share)
    )
    new = total if replay.beside else max(1, total - stored)
    memory = BufferMemory(buffer, _origins(past), f"task {task.index}", task.train, new, stored)
    return replace(stream, batch_size=new, memory=memory)


def memory_streams(data: PhaseData, batch_size: int) -> dict[str, Stream]:
    """Return the stream of stored images without augmentation, if penalties use it."""
    if data.memory is None:
        return {}
    return {MEMORY: Stream((Source(data.memory),), batch_size, view="eval", columns=("image",))}
