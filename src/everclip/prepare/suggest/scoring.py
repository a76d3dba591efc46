"""The images that trials are scored on: held-out images of the task, and images of what the model knew before.

They are never test images. They come from the task's training and validation rows, the validation part of the base, and
the validation twins of the retention suite.
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
from everclip.evaluation.validation import correct, recall_hits
from everclip.learner import Learner
from everclip.scenarios.base import ListScenario, class_entries, merge_entries

HELD_OUT = 0.2
"""Share of the training images that trials do not learn."""

LEARNED, SCORED = 2_000, 500
"""Maximum number of rows that a trial learns, and that it is scored on per kind."""

FEWEST = 20
"""Minimum number of rows per kind for a useful trial."""

Hits = Mapping[str, np.ndarray]
"""`new`, `old`, `retention` -> `(N,)` float64: 1 where the best class is the image's, else 0. Of captions: per distinct
image the mean of 1 or 0 in both directions."""


@dataclass(frozen=True)
class Part:
    """Images that are scored in the same label space; `None`: by retrieval, among all captions and images scored so."""

    table: Table
    space: LabelSpace | None


@dataclass(frozen=True)
class ScoringSets:
    """The images that a trial is scored on.

    Attributes:
        new: held-out images of the task, scored among old and new classes or captions.
        old: images of the base, scored among the same; `None` if there are none.
        retention: sets of the retention suite, each scored among its own classes.
        share: weight of old images, their share of old and new images in the stream's results.
    """

    new: Part
    old: Part | None = None
    retention: tuple[Part, ...] = ()
    share: float = 0.0

    @property
    def parts(self) -> dict[str, tuple[Part, ...]]:
        """The non-empty parts by kind."""
        found = {"new": (self.new,), "old": (self.old,) if self.old else (), "retention": self.retention}
        return {kind: parts for kind, parts in found.items() if parts}

    def weights(self, hits: Hits) -> np.ndarray:
        """Return `(N,)` weights of new and old images with mean 1; both kinds count as in the stream's results."""
        new, old = len(hits["new"]), len(hits["old"]) if "old" in hits else 0
        shares = ((1 - self.share, new), (self.share, old)) if old else ((1.0, new),)
        return np.concatenate([np.full(count, share * (new + old) / count) for share, count in shares])


def split_task(
    task: Task, most: int = LEARNED + 4 * SCORED, sweeps: bool = False
) -> tuple[Task, Table] | None:
    """Split the images of a task by hash into images to learn and images to score.

    Args:
        task: a task with classes or captions. Its validation images are scored, too, since they are not learned.
        most: maximum number of images to encode; both trials encode scored images before and after.
        sweeps: whether a preset chooses on the validation images; then they are not scored.

    Returns:
        The smaller task and the held-out rows; `None` if there are too few.
    """
    held_out = [unit_hash("trial", identity) < HELD_OUT for identity in task.train.identities()]
    learn = task.train.select([i for i, out in enumerate(held_out) if not out])
    score = task.train.select([i for i, out in enumerate(held_out) if out])
    if task.val is not None and len(task.val) and not sweeps:
        score = Table.concat([score, task.val], score.name)
    learn, score = at_most(learn, min(LEARNED, most // 2)), at_most(score, min(SCORED, most // 8))
    if min(len(learn), len(score)) < FEWEST:
        return None
    return replace(task, train=learn, val=task.val if sweeps else None), score


def at_most(table: Table, most: int) -> Table:
    """Return at most `most` rows, chosen by hash: the first rows may all be of one class."""
    if len(table) <= most:
        return table
    ids = table.ids
    chosen = sorted(range(len(table)), key=lambda i: unit_hash("trial rows", ids[i]))[:most]
    return table.select(sorted(chosen))


def scoring_sets(task: Task, rows: Table, scenario: ListScenario | None, most: int) -> ScoringSets:
    """Return the images that trials of a task are scored on.

    Args:
        task: a task with classes or captions.
        rows: its held-out images.
        scenario: the stream, if there is one.
        most: maximum number of images to encode; see `split_task`.
    """
    task_space = None if task.classes is None else LabelSpace(task.classes)
    if scenario is None:
        return ScoringSets(Part(rows, task_space))
    most = min(SCORED, most // 8)
    twins = [s for s in scenario.retention_val if s.classes and len(s.data)]
    kept = tuple(
        Part(at_most(s.data, max(FEWEST, most // len(twins))), LabelSpace(s.classes or ())) for s in twins
    )
    known = _known(scenario, task)
    if known is None:
        return ScoringSets(Part(rows, task_space), retention=kept)
    space = None if task.classes is None else _joint_space(scenario, task, known)
    if space is not None:
        keys = set(space.keys)
        known = known.where("class_key", lambda key: str(key) in keys)
    old = at_most(known, most)
    if len(old) < FEWEST:
        return ScoringSets(Part(rows, task_space), retention=kept)
    share = _share(scenario, task) or len(old) / (len(old) + len(rows))
    return ScoringSets(Part(rows, space), Part(old, space), kept, share)


def _known(scenario: ListScenario, task: Task) -> Table | None:
    """Return the validation part of the base, if results measure the base as they measure the task."""
    table, kind = scenario.base_val, _kind(task)
    column = "caption" if task.classes is None else "class_key"
    kinds = {s.kind for s in scenario.eval_sets if s.group == "known"}
    if table is None or not table.has(column) or kinds - {kind}:
        return None
    return table.where(column, lambda value: value is not None)


def _kind(task: Task) -> str:
    """Return how results measure a task."""
    return "retrieval" if task.classes is None else "classification"


def _joint_space(scenario: ListScenario, task: Task, known: Table) -> LabelSpace:
    """Return the label space of old and new classes, from the protocol by which results score them together."""
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
    """Return the share of old images among the test images of base and task; `None` if one has none."""
    counts = {"known": 0, "task": 0}
    for s in scenario.eval_sets:
        if s.kind == _kind(task) and (s.group == "known" or (s.group == "task" and s.task == task.index)):
            counts[s.group] += len(s.data)
    if not all(counts.values()):
        return None
    return counts["known"] / sum(counts.values())


def hits_of(learner: Learner, scored: ScoringSets) -> Hits:
    """Score a learner in its current state."""
    method, features = learner.method.eval(), learner.features
    tables = {kind: parts[0].table for kind, parts in scored.parts.items() if parts[0].space is None}
    found = recall_hits(method, tables, features) if tables else {}
    for kind, parts in scored.parts.items():
        if kind not in tables:
            spaces = [(part.table, part.space) for part in parts if part.space is not None]
            found[kind] = torch.cat([correct(method, table, space, features) for table, space in spaces])
    return {kind: found[kind].double().numpy() for kind in scored.parts}


def guard_sets(sets: Sequence[EvalSet], most: int) -> list[EvalSet]:
    """Return the sets that the guard watches in a trial, with no more images than are scored."""
    each = max(FEWEST, min(SCORED, most // 8) // max(1, len(sets)))
    return [replace(s, data=at_most(s.data, each)) for s in sets]
