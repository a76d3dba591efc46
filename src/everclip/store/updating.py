"""Update a store: look at the new data, learn it, choose how far to go, pass the gates, and only then serve it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from everclip.data.table import Table
from everclip.diagnosis.diagnose import Compared, Options, Target, diagnose
from everclip.diagnosis.diagnosis_page import write_diagnosis
from everclip.diagnosis.records import Role
from everclip.files import crash_point, write_text_atomic
from everclip.learner.core import Learner
from everclip.learner.tasks import make_task
from everclip.lock import now
from everclip.store.gates import gates_of, passed
from everclip.store.learning import learner_of, require_settings
from everclip.store.outlook import Outlook, known_lines, outlook_of, worth_lines
from everclip.store.records import Learned, Learning, Version
from everclip.store.shares import Tell, choose_share
from everclip.store.sizing import sized, trained_with, training_line
from everclip.store.thresholds import Carried, carry_over
from everclip.store.update_data import UpdateData, measured, read_update
from everclip.store.versions import Store
from everclip.training.watching import Watcher
from everclip.urls import is_remote, require_no_secrets

PAGE, THRESHOLDS = "diagnosis.html", "thresholds.json"


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
        ConfigError: if the version that serves cannot learn in the way of `learning`, or the data's URL holds a key.
        RunFolderError: if another process changes the store.
        DataError: if there is nothing to learn or nothing to measure.
        CheckpointError: if the version that serves is damaged.
    """
    started = time.monotonic()
    if isinstance(data, str) and is_remote(data):
        require_no_secrets(data, "--data")  # before the journal keeps it
    with store.changing("update", wait, str(data)[:200]) as action:
        parent = store.current.version
        require_settings(store.settings, learning or Learning())
        read = read_update(store, data, parent)
        old = store.load(parent)
        learner = learner_of(store, parent, sized(store.settings, learning, len(read.learn), old))
        before = outlook_of(old, read)
        for line in (*known_lines(before), *worth_lines(before)):
            tell(line)
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
        version = Version(
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
            data=_learned(read, name),
            share=share,
            gates=gates,
            numbers=compared.diagnosis.numbers,
            towers=learner.method.backbone.fingerprints(),
            seconds=round(time.monotonic() - started, 1),
        )
        version = store.add(
            learner,
            version,
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


def _learned(data: UpdateData, name: str | None) -> Learned:
    return Learned(
        name=name or data.learn.name,
        rows=len(data.learn),
        held_out=len(data.held_out),
        fingerprint=data.learn.fingerprint,
    )


def _judge(old: Learner, new: Learner, parent: str, child: str, data: UpdateData) -> Compared:
    kept, fresh = data.half("judge")
    roles: dict[str, Role] = {s.name: "kept" for s in kept}
    sets = [s for s in [*kept, fresh] if len(s.data)]
    target = Target("the store's data", measured(sets), {**roles, fresh.name: "new"})
    return diagnose(old, new, (parent, child), [target], Options(blocks=False))
