"""What trials are scored on: held-out images of the new classes, and of what the model knew before.

Never the test images that a run reports: those of the task's training and validation rows, the validation part of the
stream's base, and the validation twins of its retention suite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from everclip.contracts import EvalSet, LabelSpace, Task
from everclip.data.sampling.order import unit_hash
from everclip.data.table import Table
from everclip.evaluation.assemble import column_info
from everclip.evaluation.old_and_new import old_and_new
from everclip.evaluation.validation import correct
from everclip.learner import Learner
from everclip.scenarios.base import ListScenario, class_entries, merge_entries

HELD_OUT = 0.2
"""Share of the training images that no trial learns."""

LEARNED, SCORED = 2_000, 500
"""Most rows that a trial learns, and most of each kind that it is scored on."""

FEWEST = 20
"""Fewest rows of a kind from which a trial tells anything."""

Hits = Mapping[str, np.ndarray]
"""`new`, `old`, `retention` -> `(N,)` float64: 1 where the best class is the image's, else 0."""


@dataclass(frozen=True)
class Part:
    """Images that are scored among the same answers."""

    table: Table
    space: LabelSpace


@dataclass(frozen=True)
class Scored:
    """What a trial is scored on.

    Attributes:
        new: held-out images of the task, among the answers of old and new classes.
        old: images of what was known before, among the same answers; `None` where there are none.
        retention: sets of the retention suite, each among its own answers.
        share: of old images among old and new ones, as the stream's results count them.
    """

    new: Part
    old: Part | None = None
    retention: tuple[Part, ...] = ()
    share: float = 0.0

    @property
    def parts(self) -> dict[str, tuple[Part, ...]]:
        """The parts by the kind that they are counted as."""
        found = {"new": (self.new,), "old": (self.old,) if self.old else (), "retention": self.retention}
        return {kind: parts for kind, parts in found.items() if parts}

    def weights(self) -> np.ndarray:
        """Return `(N,)` weights of new and old images, of mean 1: each kind counts as in the stream's results."""
        new, old = len(self.new.table), 0 if self.old is None else len(self.old.table)
        shares = ((1 - self.share, new), (self.share, old)) if old else ((1.0, new),)
        return np.concatenate([np.full(count, share * (new + old) / count) for share, count in shares])


def divide(task: Task, most: int = LEARNED + 4 * SCORED, sweeps: bool = False) -> tuple[Task, Table] | None:
    """Divide the images of a task with classes into some to learn and some to score on, by hash.

    Args:
        task: with classes; its validation images are not learned, and so they are scored on, too.
        most: images that may be encoded; those that are scored are encoded before and after, by both trials.
        sweeps: whether a preset chooses on the validation images: then they are not scored on.

    Returns:
        The smaller task and the held-out rows; `None` if there are too few to tell anything.
    """
    held = [unit_hash("trial", identity) < HELD_OUT for identity in task.train.identities()]
    learn = task.train.select([i for i, out in enumerate(held) if not out])
    score = task.train.select([i for i, out in enumerate(held) if out])
    if task.val is not None and len(task.val) and not sweeps:
        score = Table.concat([score, task.val], score.name)
    learn, score = at_most(learn, min(LEARNED, most // 2)), at_most(score, min(SCORED, most // 8))
    if min(len(learn), len(score)) < FEWEST:
        return None
    return replace(task, train=learn, val=task.val if sweeps else None), score


def at_most(table: Table, most: int) -> Table:
    """Return the table, or so many of its rows chosen by hash: the first ones may be of one class."""
    if len(table) <= most:
        return table
    ids = table.ids
    chosen = sorted(range(len(table)), key=lambda i: unit_hash("trial rows", ids[i]))[:most]
    return table.select(sorted(chosen))


def scored_on(task: Task, rows: Table, scenario: ListScenario | None, most: int) -> Scored:
    """Return what trials of a task are scored on.

    Args:
        task: with classes.
        rows: its held-out images.
        scenario: the stream, where one was named.
        most: images that may be encoded; see `divide`.
    """
    own = LabelSpace(task.classes or ())
    if scenario is None:
        return Scored(Part(rows, own))
    most = min(SCORED, most // 8)
    twins = [s for s in scenario.retention_val if s.classes and len(s.data)]
    kept = tuple(
        Part(at_most(s.data, max(FEWEST, most // len(twins))), LabelSpace(s.classes or ())) for s in twins
    )
    known = _known(scenario)
    if known is None:
        return Scored(Part(rows, own), retention=kept)
    space = _answers(scenario, task, known)
    keys = set(space.keys)
    held = at_most(known.where("class_key", lambda key: str(key) in keys), most)
    if len(held) < FEWEST:
        return Scored(Part(rows, own), retention=kept)
    share = _share(scenario, task) or len(held) / (len(held) + len(rows))
    return Scored(Part(rows, space), Part(held, space), kept, share)


def _known(scenario: ListScenario) -> Table | None:
    """Return the validation part of the base, where results measure the base by its classes."""
    table = scenario.base_val
    kinds = {s.kind for s in scenario.eval_sets if s.group == "known"}
    if table is None or not table.has("class_key") or kinds - {"classification"}:
        return None
    return table.where("class_key", lambda key: key is not None)


def _answers(scenario: ListScenario, task: Task, known: Table) -> LabelSpace:
    """Return the answers of old and new classes: those of the protocol by which results score them together."""
    protocols = [{"name": p.name, "space": p.space, "known_task": p.known_task} for p in scenario.protocols]
    how = old_and_new(
        [column_info(s) for s in scenario.eval_sets], protocols, scenario.spec.headline.model_dump()
    )
    ours = [s for s in scenario.eval_sets if s.task == task.index and s.kind == "classification"]
    if not isinstance(how, str) and ours:
        protocol = next(p for p in scenario.protocols if p.name == how.protocol)
        space = scenario.label_space(ours[0], {task.index}, protocol)
        if space is not None and set(known.column("class_key")) & set(space.keys):
            return space
    templates = task.classes[0].templates if task.classes else ("{}",)
    return LabelSpace(merge_entries([*class_entries(known, templates), *(task.classes or ())]))


def _share(scenario: ListScenario, task: Task) -> float | None:
    """Return the share of old images among the old and new ones that the stream tests; `None` if it tests none."""
    counts = {"known": 0, "task": 0}
    for s in scenario.eval_sets:
        if s.kind == "classification" and (
            s.group == "known" or (s.group == "task" and s.task == task.index)
        ):
            counts[s.group] += len(s.data)
    if not all(counts.values()):
        return None
    return counts["known"] / sum(counts.values())


def hits_of(learner: Learner, scored: Scored) -> Hits:
    """Score a learner as it is now."""
    learner.method.eval()
    return {
        kind: torch.cat([correct(learner.method, p.table, p.space, learner.features) for p in parts])
        .double()
        .numpy()
        for kind, parts in scored.parts.items()
    }


def watched(sets: Sequence[EvalSet], most: int) -> list[EvalSet]:
    """Return the sets that a guard looks at in a trial: no more images than are scored."""
    each = max(FEWEST, min(SCORED, most // 8) // max(1, len(sets)))
    return [replace(s, data=at_most(s.data, each)) for s in sets]
