"""Learn from batches as they come: `Learner.observe`. The stream has no end, and every sample is seen once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch

from everclip.config import TrainingConfig
from everclip.contracts import ClassEntry, Past, Phase, StepDecay, Stream, Task
from everclip.data.sampling.order import key_of
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.learner.single_pass import one_pass
from everclip.learner.tasks import UserData, batch_of
from everclip.methods.base import Method
from everclip.methods.slots import SlotMethod
from everclip.scenarios.base import class_entries
from everclip.training.engine import Engine
from everclip.training.stream_memory import BufferMemory
from everclip.training.trial import macs_in
from everclip.training.watching import Cursor, StepLog, Watcher

ORIGIN = "task 0"
"""The name of the stream in the buffer: it is the only task."""
CONSTANT = StepDecay(every=2**62, factor=1.0)
"""The length of the stream is not known, so its learning rate is constant."""


@dataclass(frozen=True)
class Observed:
    """What a batch did.

    Attributes:
        samples: number of samples that were learned.
        repeated: number of samples that were left out, because they were seen before.
        new_classes: names of the classes that appeared for the first time.
        losses: name -> loss at the last step on this batch; empty if nothing trained.
        total: number of samples seen so far.
    """

    samples: int
    repeated: int
    new_classes: tuple[str, ...]
    losses: dict[str, float]
    total: int


@dataclass
class LiveStream:
    """The state of a stream of batches, with the samples of the buffer.

    Attributes:
        classes: the classes seen so far, in the order in which they appeared.
        samples, batches: how many were learned.
        seen: 62 bits of a hash of the id of every sample.
        stored: the samples in the buffer; they are copies, so the data may be gone.
        optimiser: the moments of the optimiser.
    """

    classes: tuple[ClassEntry, ...] = ()
    samples: int = 0
    batches: int = 0
    seen: set[int] = field(default_factory=set)
    stored: Table | None = None
    optimiser: dict[str, torch.Tensor] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Return the state as JSON, without tensors and samples."""
        classes = [asdict(entry) for entry in self.classes]
        return {"classes": classes, "samples": self.samples, "batches": self.batches}

    def seen_tensor(self) -> torch.Tensor:
        """Return the hashes of the seen samples `(N,)` int64, sorted."""
        return torch.tensor(sorted(self.seen), dtype=torch.int64)


class Observer(Protocol):
    """The interface of a learner that observing uses; see `everclip.Learner`."""

    method: Method
    training: TrainingConfig
    engine: Engine
    tasks: list[Task]
    compute: list[dict[str, Any]]
    live: LiveStream | None

    def past(self) -> Past:
        """Return the past data that the method may use."""


@dataclass(frozen=True)
class _Fixed:
    """Stored samples of one batch."""

    rows: Sequence[tuple[Table, int]]

    def drawn(self, batch: int) -> Sequence[tuple[Table, int]]:
        """Return the stored samples."""
        return self.rows


class _Last(Watcher):
    """Remembers the losses of the last step."""

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}

    def report(self, logs: Sequence[StepLog]) -> None:
        """Receive the next logs."""
        self.losses = {name: float(value) for name, value in logs[-1].losses.items()}


def observe(learner: Observer, data: UserData, templates: tuple[str, ...], again: bool) -> Observed:
    """See `everclip.Learner.observe`."""
    if learner.tasks:
        raise ConfigError(
            "observe: this learner has learned tasks; a stream of batches needs a learner of its own "
            "(Learner.create, or Learner.load of one that only observed)."
        )
    live = learner.live
    if live is None:
        _require_streamable(learner.method, learner.training)
        live = LiveStream()
    given, repeated = batch_of(data)
    if given is None:
        return Observed(0, 0, (), {}, live.samples)
    given = _named(given)
    keys = [key_of("seen", name) >> 66 for name in _sample_names(given)]
    fresh = list(range(len(keys))) if again else _first_of_each(keys, live.seen)
    repeated += len(given) - len(fresh)
    table = given.select(fresh)
    if not len(table):
        return Observed(0, repeated, (), {}, live.samples)
    classes, new = _with_new_classes(live.classes, table, templates)
    task = Task(0, "stream", table, classes=classes or None, once=True)
    if learner.live is None:
        learner.method.begin_task(task, learner.past())
        learner.live = live
    losses = _learn(learner, live, task)
    live.classes, live.samples, live.batches = classes, live.samples + len(table), live.batches + 1
    live.seen.update(keys[i] for i in fresh)
    _store(learner.method, live, table)
    learner.method.eval()
    learner.engine.columns.release()  # no later batch has the same samples
    return Observed(len(table), repeated, tuple(entry.name for entry in new), losses, live.samples)


def _first_of_each(keys: Sequence[int], known: set[int]) -> list[int]:
    """Return the positions of the keys that are not known, of equal ones the first."""
    first: dict[int, int] = {}
    for position, key in enumerate(keys):
        first.setdefault(key, position)
    return [position for key, position in first.items() if key not in known]


def _content(table: Table, position: int) -> str | None:
    """Return what reading makes ids of, where a sample has such an id: the hash of its image."""
    content = table.content(position)[:16]
    name = table.ids[position]
    return content if name == content or name.startswith(f"{content}-") else None


def _named(table: Table) -> Table:
    """Return a batch whose captions without classes have ids that no other caption of their image has.

    Ids that reading gives number the rows of an image within a batch, and a stream has more of them.
    """
    if _has_classes(table) or not table.has("caption"):
        return table
    captions = table.column("caption")
    names: list[str] = []
    for position, name in enumerate(table.ids):
        content = _content(table, position)
        names.append(name if content is None else f"{content}-{key_of('caption', captions[position]):032x}")
    return table if names == table.ids else table.with_column("id", names)


def _sample_names(table: Table) -> list[str]:
    """Return what tells samples apart: the id, or the image alone where its class goes with it."""
    if not _has_classes(table):
        return table.ids
    return [_content(table, position) or name for position, name in enumerate(table.ids)]


def _has_classes(table: Table) -> bool:
    return table.has("class_key") and any(key is not None for key in table.column("class_key"))


def _require_streamable(method: Method, training: TrainingConfig) -> None:
    """Refuse a method that needs borders or an end, and a budget that needs an end.

    Raises:
        ConfigError: says why.
    """
    if method.needs.borders or method.needs.all_tasks_at_once:
        raise ConfigError(
            f"observe: {method.preset} must know where a task begins and ends, and batches have no borders. Take sit, "
            "finetune or replay, or make tasks of the data (everclip.make_task, Learner.learn)."
        )
    if isinstance(method, SlotMethod) and method.settings.merge.kind != "none":
        raise ConfigError(
            f"observe: method.merge.kind={method.settings.merge.kind} merges when a task ends, and a stream of batches "
            "has no end; set it to none."
        )
    if training.macs is not None:
        raise ConfigError(
            f"observe: training.macs={training.macs:g} is the budget of a task, and a stream of batches has no end. "
            "Set training.steps_per_batch for more or fewer steps; training.count_macs=true counts what they compute."
        )


def _with_new_classes(
    known: tuple[ClassEntry, ...], table: Table, templates: tuple[str, ...]
) -> tuple[tuple[ClassEntry, ...], list[ClassEntry]]:
    """Return the classes with those that appear first in a batch, and the latter.

    Raises:
        DataError: if only some of the samples have a class.
    """
    if not _has_classes(table):
        if known:
            raise DataError(f"{table.name}: no sample of this batch has a class, but earlier ones had.")
        return known, []
    if None in table.column("class_key"):
        raise DataError(f"{table.name}: some samples of this batch have no class; give all of them one.")
    names = {entry.key for entry in known}
    new = [replace(e, tasks=(0,)) for e in class_entries(table, templates) if e.key not in names]
    return (known if not new else (*known, *new)), new


def _learn(learner: Observer, live: LiveStream, task: Task) -> dict[str, float]:
    phases = one_pass(learner.method.plan(task, learner.past()), task, learner.training, learner.method)
    if not phases:
        return {}
    cursor = Cursor(optimiser=live.optimiser, begun=True)
    phase = _phase_of_batch(phases[0], live, task.train, learner.method)
    times = phase.streams["main"].times
    cursor.step = live.batches * times
    watcher = _Last()
    learner.engine.may_idle = True
    keeping = _Keeping(watcher, cursor, (live.batches + 1) * times)
    step = partial(learner.engine.run, learner.method, phase, 0, cursor, keeping)
    if learner.training.count_macs:
        macs = learner.engine.accelerator.num_processes * macs_in(step)
        learner.compute = [_with_macs(learner.compute, macs, phase.name, times)]
    else:
        step()
    live.optimiser = cursor.optimiser
    return watcher.losses


def _with_macs(compute: Sequence[Mapping[str, Any]], macs: float, phase: str, times: int) -> dict[str, Any]:
    """Return the record of what the stream computed so far, with the multiply-accumulates of one more batch."""
    before = compute[0]["macs"] if compute else 0.0
    return {"task": "stream", "macs": before + macs, "per_step": {phase: macs / times}}


class _Keeping(Watcher):
    """Keeps the optimiser's moments after the last step of a batch."""

    def __init__(self, inner: _Last, cursor: Cursor, stop: int) -> None:
        self._inner, self._cursor, self._stop = inner, cursor, stop

    def after_step(self, log: StepLog) -> bool:
        """Ask for the state after the last step."""
        return log.step + 1 == self._stop

    def report(self, logs: Sequence[StepLog]) -> None:
        """Pass logs on."""
        self._inner.report(logs)

    def save(self, cursor: Cursor, optimiser: Any) -> None:
        """Keep copies of the moments: the next batch has an optimiser of its own."""
        cursor.optimiser = {name: value.detach().clone() for name, value in optimiser().items()}


def _phase_of_batch(phase: Phase, live: LiveStream, table: Table, method: Method) -> Phase:
    """Return a phase over one batch, in its place in the whole stream."""
    main = phase.streams["main"]
    memory = main.memory
    drawn: Sequence[tuple[Table, int]] = ()
    if isinstance(memory, BufferMemory) and live.stored is not None and method.buffer is not None:
        stored = memory.count * len(table) // main.batch_size
        held = BufferMemory(method.buffer, {}, ORIGIN, live.stored, 1, stored, live.batches)
        drawn = held.drawn(live.batches)

    def placed(stream: Stream) -> Stream:
        if stream.order != "once":
            return stream
        return replace(stream, batch_size=len(table), first=live.batches, known=len(live.classes))

    streams = {name: placed(stream) for name, stream in phase.streams.items()}
    streams["main"] = replace(streams["main"], memory=_Fixed(drawn) if drawn else None)
    return replace(phase, streams=streams, schedule=CONSTANT)


def _store(method: Method, live: LiveStream, table: Table) -> None:
    """Offer a batch to the buffer, and keep copies of what it stores."""
    if method.buffer is None:
        return
    method.buffer.offer(ORIGIN, table)
    both = table if live.stored is None else Table.concat([live.stored, table])
    kept = method.buffer.rows({ORIGIN: both})
    live.stored = None if kept is None else Table(kept.arrow(), name="stored")


def restored(
    state: Mapping[str, Any], seen: torch.Tensor, stored: Table | None, optimiser: dict[str, torch.Tensor]
) -> LiveStream:
    """Return the stream that `LiveStream.state` described."""
    classes = tuple(
        ClassEntry(**{**e, "templates": tuple(e["templates"]), "tasks": tuple(e["tasks"])})
        for e in state["classes"]
    )
    return LiveStream(classes, state["samples"], state["batches"], set(seen.tolist()), stored, optimiser)
