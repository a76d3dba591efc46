"""Update a store: look at the new data, learn it, choose how far to go, pass the gates, and only then serve it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from everclip.config import EvaluationConfig
from everclip.contracts import EvalSet
from everclip.data.table import Table
from everclip.diagnosis.diagnose import Compared, Options, Target, diagnose
from everclip.diagnosis.diagnosis_page import write_diagnosis
from everclip.diagnosis.records import Role
from everclip.diagnosis.seen import see
from everclip.errors import ConfigError
from everclip.features.encoder import image_encoder
from everclip.features.pictures import Pictures
from everclip.files import crash_point, write_text_atomic
from everclip.learner.core import Learner
from everclip.learner.tasks import make_task, table_of
from everclip.lock import now
from everclip.scenarios.measuring import MeasuredSets
from everclip.store.drift import Drift, drift
from everclip.store.foreseen import Foreseen, foresee
from everclip.store.gates import gates_of, passed
from everclip.store.learning import learner_of, require_settings
from everclip.store.records import Gate, Learned, Learning, Version
from everclip.store.sets import Half, half, held_out_sets, parted, probe_sets
from everclip.store.sizing import sized, trained_with, training_line
from everclip.store.thresholds import Carried, carry_over
from everclip.store.versions import Store
from everclip.training.watching import Watcher

SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)
"""How far the weights may go from the parent's (0) to the learned ones (1); after WiSE-FT (arXiv 2109.01903)."""

PAGE, THRESHOLDS = "diagnosis.html", "thresholds.json"


@dataclass(frozen=True)
class Slice:
    """New data, or a part of them, before the update.

    Attributes:
        name: of the part.
        rows: its held-out rows.
        score: of the version that serves.
        drift: against what was measured so far; `None` with too few images.
    """

    name: str
    rows: int
    score: float
    drift: Drift | None


@dataclass(frozen=True)
class Outlook:
    """What is known before an update: is it worth it?

    Attributes:
        metric: what `score` is.
        known: mean score on probes and held-out data of earlier updates; `None` without any.
        slices: the new data, then parts of them.
        rows, held_out: rows to learn from, and rows that are only measured.
        notes: what is to be said about the data.
        takes: what the update would take; `None` after one.
    """

    metric: str
    known: float | None
    slices: list[Slice]
    rows: int
    held_out: int
    notes: list[str] = field(default_factory=list)
    takes: Foreseen | None = None


@dataclass(frozen=True, eq=False)
class Updated:
    """The result of an update.

    Attributes:
        version: what is written of the new version.
        compared: the diagnosis behind its gates.
        outlook: what was known before.
        serves: whether the new version serves now.
        sweep: share -> (loss of the known, gain on new data) on the halves that choose.
        thresholds: of a tagger's classes, for the new version.
    """

    version: Version
    compared: Compared
    outlook: Outlook
    serves: bool
    sweep: dict[float, tuple[float, float]]
    thresholds: list[Carried] = field(default_factory=list)


@dataclass(frozen=True)
class _Data:
    """The data of an update, and the sets that measure it."""

    learn: Table
    held_out: Table
    kept: list[EvalSet]
    new: EvalSet

    def half(self, which: Half) -> tuple[list[EvalSet], EvalSet]:
        """Return the halves of kept and new sets that choose, or that judge."""
        return [half(s, which) for s in self.kept], half(self.new, which)


Tell = Callable[[str], None]


def read_update(store: Store, data: str | Table, parent: str) -> _Data:
    """Read the data of an update.

    Raises:
        DataError: if there is nothing to learn or nothing to measure.
    """
    table = data if isinstance(data, Table) else table_of(data)
    learn, held = parted(table)
    past, new = held_out_sets(store, parent, held)
    assert new is not None
    return _Data(learn, held, [*probe_sets(store), *past], new)


def outlook(
    store: Store, data: str | Table, slices: Sequence[str] = (), learning: Learning | None = None
) -> Outlook:
    """Say, before an update, how well the version that serves does on new data, and how far they differ.

    Args:
        store: the store.
        data: the new data.
        slices: columns whose values make parts.
        learning: how the update would learn, if that differs from the settings of the store.
    """
    parent = store.current.version
    require_settings(store.settings, learning or Learning())
    read = read_update(store, data, parent)
    old = store.load(parent)
    learner = learner_of(store, parent, sized(store.settings, learning, len(read.learn), old))
    found = _outlook(old, read, slices)
    return replace(found, takes=foresee(learner, make_task(read.learn)))


def _outlook(learner: Learner, data: _Data, columns: Sequence[str] = ()) -> Outlook:
    seen = see(learner, _measured([*data.kept, data.new]), (), EvaluationConfig(), 0)
    metric = seen[data.new.name].metric
    outcomes = seen[data.new.name].outcomes[metric]
    images = _embeddings(learner, data.new.data)
    known = [_embeddings(learner, s.data) for s in data.kept]
    reference = torch.cat(known) if known else None

    def part(name: str, rows: list[int]) -> Slice:
        score = (
            float(outcomes[rows].mean()) if len(outcomes) == len(data.new.data) else float(outcomes.mean())
        )
        return Slice(name, len(rows), score, None if reference is None else drift(reference, images[rows]))

    slices = [part("all new data", list(range(len(data.new.data))))]
    for column in columns:
        if not data.new.data.has(column):
            raise ConfigError(
                f"--slice: the data have no column {column!r}; there are {', '.join(data.new.data.column_names)}."
            )
        values = [str(value) for value in data.new.data.column(column)]
        slices += [
            part(f"{column} {v}", [i for i, x in enumerate(values) if x == v]) for v in dict.fromkeys(values)
        ]
    scores = [float(one.outcomes[one.metric].mean()) for name, one in seen.items() if name != data.new.name]
    repeated = learner.pictures.among(data.new.data) if len(learner.pictures) else 0
    notes = (
        [f"{repeated:,} held-out images were learned from before, so their scores are too good"]
        if repeated
        else []
    )
    return Outlook(
        metric,
        sum(scores) / len(scores) if scores else None,
        slices,
        len(data.learn),
        len(data.held_out),
        notes,
    )


def _embeddings(learner: Learner, table: Table) -> torch.Tensor:
    encoder = image_encoder(learner.method, learner.method.encoder_keys())
    return learner.features.images(encoder, Pictures.of(table))["embedding"]


def update(
    store: Store,
    data: str | Table,
    *,
    name: str | None = None,
    learning: Learning | None = None,
    wait: bool = False,
    accept_unclear: bool = False,
    thresholds: Mapping[str, float] | None = None,
    watcher: Watcher | None = None,
    tell: Tell = lambda line: None,
) -> Updated:
    """Learn new data from the version that serves; the result serves if it passes the gates.

    Half of each probe suite and of held-out data chooses how far the weights go, the other half judges.

    Args:
        store: the store.
        data: the new data, see `DataSpec.source`.
        name: of the data; default: their own.
        learning: how this update learns, if that differs from the settings of the store.
        wait: wait for another process that changes the store.
        accept_unclear: whether gates that cannot tell, or were not measured, count as passed.
        thresholds: class name -> least cosine of a tag; the new version gets those that keep the old precision.
        watcher: follows the steps of training.
        tell: called with lines about the progress.

    Raises:
        ConfigError: if the version that serves cannot learn in the way of `learning`.
        RunFolderError: if another process changes the store.
        DataError: if there is nothing to learn or nothing to measure.
        CheckpointError: if the version that serves is damaged.
    """
    started = time.monotonic()
    with store.changing("update", wait, str(data)[:200]) as action:
        parent = store.current.version
        require_settings(store.settings, learning or Learning())
        read = read_update(store, data, parent)
        old = store.load(parent)
        learner = learner_of(store, parent, sized(store.settings, learning, len(read.learn), old))
        before = _outlook(old, read)
        tell(
            f"learning {len(read.learn):,} rows from {parent} ({training_line(trained_with(learner.training))}); "
            f"{len(read.held_out):,} rows are only measured"
        )
        learner.learn(make_task(read.learn, name=name or read.learn.name), watcher=watcher)
        crash_point("in store: learned")
        sweep = choose_share(old, learner, read, store.settings.gates.retention, tell)
        share = next(iter(sweep)) if sweep else 1.0
        tell(f"measuring the gates ({share:g} of the way to the learned weights)")
        compared = _judge(old, learner, parent, store.next_id(), read)
        gates = gates_of(compared.diagnosis, store.settings.gates, old, learner)
        good = passed(gates, accept_unclear)
        cuts = carry_over(thresholds, old, learner, [*read.kept, read.new]) if thresholds else []
        version = store.add(
            learner,
            _record(store, learner, learning, parent, read, name, gates, compared, share, good, started),
            read.held_out,
            lambda folder: _pages(compared, cuts, folder),
        )
        action.version = version.id
        action.detail = "serves" if good else "rejected"
        crash_point("in store: before switching")
        if good:
            store.point_to(version.id)
    return Updated(version, compared, before, good, dict(sorted(sweep.items(), reverse=True)), cuts)


def _pages(compared: Compared, cuts: Sequence[Carried], folder: Path) -> None:
    write_diagnosis(compared, folder / PAGE)
    if cuts:
        write_text_atomic(folder / THRESHOLDS, json.dumps({of.name: of.new for of in cuts}, indent=1))


def _record(
    store: Store,
    learner: Learner,
    learning: Learning | None,
    parent: str,
    read: _Data,
    name: str | None,
    gates: list[Gate],
    compared: Compared,
    share: float,
    good: bool,
    started: float,
) -> Version:
    return Version(
        id=store.next_id(),
        parent=parent,
        created=now(),
        state="accepted" if good else "rejected",
        method=learner.method.preset,
        learning=learning,
        training=trained_with(learner.training),
        tensors={},
        learner="",
        files={},
        data=Learned(
            name=name or read.learn.name,
            rows=len(read.learn),
            held_out=len(read.held_out),
            fingerprint=read.learn.fingerprint,
        ),
        share=share,
        gates=gates,
        numbers=compared.diagnosis.numbers,
        towers=learner.method.backbone.fingerprints(),
        seconds=round(time.monotonic() - started, 1),
    )


def _judge(old: Learner, new: Learner, parent: str, child: str, data: _Data) -> Compared:
    kept, fresh = data.half("judge")
    roles: dict[str, Role] = {s.name: "kept" for s in kept}
    sets = [s for s in [*kept, fresh] if len(s.data)]
    target = Target("the store's data", _measured(sets), {**roles, fresh.name: "new"})
    return diagnose(old, new, (parent, child), [target], Options(blocks=False))


def choose_share(
    old: Learner, new: Learner, data: _Data, tolerance: float | None, tell: Tell = lambda line: None
) -> dict[float, tuple[float, float]]:
    """Move the learned weights towards the parent's as far as the known needs it; return what each share gave.

    Of the shares whose loss on the known is within the tolerance (half of it, since choosing is optimistic), the one
    with the largest gain is taken; if there is none, the one with the smallest loss. `new` holds these weights then.

    Returns:
        share -> (loss, gain), the chosen one first; empty for a method that grows, whose weights have no parent's.
    """
    start, learned = _floats(old), _floats(new)
    if start.keys() != learned.keys() or any(start[k].shape != learned[k].shape for k in start):
        tell(
            f"{new.method.preset} added weights that the version that serves does not have, so it cannot go only part "
            "of the way: the learned weights are taken whole"
        )
        return {}
    kept, fresh = data.half("choose")
    sets = [s for s in [*kept, fresh] if len(s.data)]
    if fresh not in sets or len(sets) < 2:
        tell("there is no held-out data to choose a share with: the learned weights are taken whole")
        return {}
    first = _means(old, sets)
    found: dict[float, tuple[float, float]] = {}
    for share in SHARES:
        _put(new, start, learned, share)
        now_ = _means(new, sets)
        losses = [first[s.name] - now_[s.name] for s in sets if s is not fresh]
        found[share] = (sum(losses) / len(losses), now_[fresh.name] - first[fresh.name])
        tell(
            f"share {share:g}: known {0 - 100 * found[share][0]:+.1f} points, new {100 * found[share][1]:+.1f}"
        )
    limit = 1.0 if tolerance is None else tolerance / 2
    within = [share for share in SHARES if found[share][0] <= limit]
    chosen = max(within, key=lambda s: (found[s][1], s)) if within else min(SHARES, key=lambda s: found[s][0])
    _put(new, start, learned, chosen)
    return {chosen: found[chosen], **found}


def _floats(learner: Learner) -> dict[str, torch.Tensor]:
    state = learner.method.state_dict()
    return {name: values.detach().clone() for name, values in state.items() if values.is_floating_point()}


def _put(
    learner: Learner, start: dict[str, torch.Tensor], learned: dict[str, torch.Tensor], share: float
) -> None:
    state = learner.method.state_dict()
    with torch.no_grad():
        for name, values in learned.items():
            state[name].copy_(values if share == 1 else start[name].lerp(values, share))


def _means(learner: Learner, sets: Sequence[EvalSet]) -> dict[str, float]:
    seen = see(learner, _measured(sets), (), EvaluationConfig(), 0)
    return {name: float(one.outcomes[one.metric].mean()) for name, one in seen.items()}


def _measured(sets: Sequence[EvalSet]) -> MeasuredSets:
    return MeasuredSets(tuple(replace(s, group="retention", task=None) for s in sets if len(s.data)))
