"""Which preset learns the new classes better: each learns a part of the training images and is scored on the rest."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from everclip.contracts import LabelSpace, Task
from everclip.data.order import unit_hash
from everclip.data.table import Table
from everclip.evaluation.statistics import paired_bootstrap
from everclip.evaluation.validation import correct
from everclip.learner import Learner

HELD_OUT = 0.2
"""Share of the images that no trial learns."""

LEARNED, SCORED = 2_000, 500
"""Most rows that a trial learns, and most that it is scored on."""

FEWEST = 20
"""Fewest rows on either side from which a trial tells anything."""


@dataclass(frozen=True)
class Trial:
    """What a preset gained on held-out images of the new classes.

    Attributes:
        method: the preset.
        before, after: accuracy among the new classes.
        change, low, high: of the accuracy, with a paired bootstrap interval over images.
        resolved: whether the change may be called one.
        images: how many images were scored.
        seconds: that learning took.
        steps, planned: gradient steps taken, and those of the suggested run; 0 for a closed form.
    """

    method: str
    before: float
    after: float
    change: float
    low: float
    high: float
    resolved: bool
    images: int
    seconds: float
    steps: int = 0
    planned: int = 0

    @property
    def short(self) -> bool:
        """Whether fewer than half of the suggested run's steps were taken: the gain says little about the run's."""
        return 2 * self.steps < self.planned

    def describe(self) -> str:
        """Return the trial in one line."""
        text = f"{self.method}: {100 * self.before:.1f} % -> {100 * self.after:.1f} % "
        text += f"({100 * self.change:+.1f} points, {100 * self.low:+.1f} to {100 * self.high:+.1f}; "
        text += f"{self.seconds:.0f} s"
        if self.planned:
            text += f" for {self.steps:,} of {self.planned:,} steps"
        return text + (")" if self.resolved else "; not resolved)")


def divide(task: Task, most: int = LEARNED + 4 * SCORED) -> tuple[Task, Table] | None:
    """Divide the training images of a task with classes into some to learn and some to score on, by hash.

    Args:
        task: with classes.
        most: images that may be encoded; those that are scored are encoded before and after, by both trials.

    Returns:
        The smaller task and the held-out rows; `None` if there are too few to tell anything.
    """
    held = [unit_hash("trial", identity) < HELD_OUT for identity in task.train.identities()]
    learn = task.train.select([i for i, out in enumerate(held) if not out][: min(LEARNED, most // 2)])
    score = task.train.select([i for i, out in enumerate(held) if out][: min(SCORED, most // 8)])
    if min(len(learn), len(score)) < FEWEST:
        return None
    return replace(task, train=learn, val=None), score


def try_method(learner: Learner, task: Task, scored: Table, planned: int = 0) -> Trial:
    """Let a learner learn a part of the new images, and score it on the others among the task's classes.

    Args:
        learner: at the start model; it has learned the task afterwards.
        task: what it learns; see `divide`.
        scored: images that it is scored on.
        planned: gradient steps of the suggested run, for the record; 0 for a closed form.
    """
    assert task.classes is not None  # `divide` is for tasks with classes
    space = LabelSpace(task.classes)
    before = _hits(learner, scored, space)
    started = time.monotonic()
    learner.learn(task)
    seconds = time.monotonic() - started
    after = _hits(learner, scored, space)
    difference = paired_bootstrap(after.numpy(), before.numpy(), learner.seed)
    return Trial(
        method=learner.method.preset,
        before=float(before.mean()),
        after=float(after.mean()),
        change=difference.mean,
        low=difference.low,
        high=difference.high,
        resolved=difference.resolved,
        images=len(scored),
        seconds=seconds,
        steps=(learner.training.steps or 0) if planned else 0,
        planned=planned,
    )


def _hits(learner: Learner, table: Table, space: LabelSpace) -> torch.Tensor:
    """Return 1 or 0 per row `(N,)` float64: whether the best class is the row's."""
    learner.method.eval()
    return correct(learner.method, table, space, learner.store).double()


def better(closed_form: Trial, trained: Trial | None = None) -> bool:
    """Return whether the closed form is the one to propose: its gain is resolved and not below the other's."""
    if not closed_form.resolved or closed_form.change <= 0:
        return False
    return trained is None or closed_form.change >= trained.change
