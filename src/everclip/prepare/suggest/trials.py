"""Trials of presets: each learns a part of the new images and is scored on other images, old and new."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from everclip.contracts import Task
from everclip.evaluation.statistics import Difference, paired_bootstrap
from everclip.learner import Learner
from everclip.prepare.suggest.scoring import Hits, ScoringSets, hits_of
from everclip.training.watching import Watcher

ENOUGH = 0.5
"""A trial with less than this share of the suggested run's steps is too short to lose a comparison."""


@dataclass(frozen=True)
class Side:
    """Score before and after a trial, with a paired bootstrap interval of the change over images.

    Attributes:
        before, after: accuracy; of captions the mean Recall@1 of both directions.
        change, low, high: change of the score, with its interval.
        resolved: whether the interval does not contain 0.
        images: number of scored images.
    """

    before: float
    after: float
    change: float
    low: float
    high: float
    resolved: bool
    images: int

    def describe(self) -> str:
        """Return the score and its change in words."""
        text = f"{100 * self.before:.1f} % -> {100 * self.after:.1f} % "
        return text + f"({points(self.change, self.low, self.high, self.resolved)})"


@dataclass(frozen=True)
class Trial:
    """The result of a trial.

    Attributes:
        method: the preset.
        together: old and new images, scored among old and new classes or captions; only new ones if there are no old.
            This score decides.
        new: the new images only, scored among the same.
        old: the old images only; `None` if there are none.
        retention: sets of the retention suite, each scored among its own classes; `None` if there are none.
        seconds: time of learning.
        steps, planned: gradient steps of the trial and of the suggested run; 0 for a closed form.
        rate: its learning rate; `None` for a closed form.
        rate_known: whether that rate was measured or given.
        guarded: whether the guard acted, watching images that are also scored.
    """

    method: str
    together: Side
    new: Side
    old: Side | None
    retention: Side | None
    seconds: float
    steps: int = 0
    planned: int = 0
    rate: float | None = None
    rate_known: bool = True
    guarded: bool = False

    @property
    def short(self) -> bool:
        """Whether the trial took too few of the suggested run's steps to tell what the run would gain."""
        return self.steps < ENOUGH * self.planned

    @property
    def weakness(self) -> str:
        """Why the trial must not lose a comparison; empty if it may."""
        if self.short:
            enough = math.ceil(ENOUGH * self.planned * self.seconds / max(1, self.steps) / 10) * 10
            return (
                f"{self.method} took only {self.steps:,} of its {self.planned:,} steps (half of them need "
                f"--trial-seconds={enough})"
            )
        if not self.rate_known:
            return f"the learning rate of {self.method} was not measured"
        return ""

    def describe(self) -> list[str]:
        """Return the trial in words, line by line."""
        sides = [("old and new together", self.together)] if self.old is not None else []
        sides += [("new", self.new)] + ([("old", self.old)] if self.old is not None else [])
        sides += [("retention", self.retention)] if self.retention is not None else []
        cost = f"{self.seconds:.0f} s"
        if self.planned:
            cost += f" for {self.steps:,} of {self.planned:,} steps"
        if self.rate is not None:
            cost += f" at learning rate {self.rate:g}"
        lines = [f"{self.method}: {cost}", *(f"  {name}: {side.describe()}" for name, side in sides)]
        note = "  the guard acted on images that are also scored: old scores may be too good"
        return [*lines, note] if self.guarded else lines


@dataclass(frozen=True)
class Gap:
    """The difference between the preset that trains and the closed form, on the same images.

    Attributes:
        together, new, old, retention: as in `Trial`; positive if the preset that trains is better.
    """

    together: Difference
    new: Difference
    old: Difference | None
    retention: Difference | None

    def describe(self) -> str:
        """Return the differences in one line."""
        sides = [("old and new together", self.together)] if self.old is not None else []
        sides += [("new", self.new)] + ([("old", self.old)] if self.old is not None else [])
        sides += [("retention", self.retention)] if self.retention is not None else []
        return "; ".join(f"{name} {points(d.mean, d.low, d.high, d.resolved)}" for name, d in sides)


def points(mean: float, low: float, high: float, resolved: bool) -> str:
    """Return a change of a score in words."""
    text = f"{100 * mean:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f}"
    return text if resolved else f"{text}, not resolved"


@dataclass(frozen=True)
class Plan:
    """The plan of a trial that trains.

    Attributes:
        steps: steps of the trial.
        planned: steps of the suggested run.
        rate: the learning rate.
        rate_known: whether the rate was measured or given.
    """

    steps: int
    planned: int
    rate: float
    rate_known: bool


def try_method(
    learner: Learner,
    task: Task,
    scored: ScoringSets,
    before: Hits,
    plan: Plan | None = None,
    watcher: Watcher | None = None,
) -> tuple[Trial, Hits]:
    """Learn a part of the new images, and score the learner on other images.

    Args:
        learner: a learner at the start model; it has learned the task afterwards.
        task: the images to learn; see `split_task`.
        scored: the images to score.
        before: the scores of the start model.
        plan: the plan of a preset that trains; `None` for a closed form.
        watcher: watches the steps.

    Returns:
        The trial, and its score of every image.
    """
    started = time.monotonic()
    learner.learn(task, watcher=watcher, show=False)
    seconds = time.monotonic() - started
    after, seed = hits_of(learner, scored), learner.seed
    acted = learner.method.notes.get("guard", {}).get("acted", ())
    weights = scored.weights(after)
    trial = Trial(
        method=learner.method.preset,
        together=_side(_together(after), _together(before), seed, weights),
        new=_side(after["new"], before["new"], seed),
        old=_side(after["old"], before["old"], seed) if "old" in after else None,
        retention=_side(after["retention"], before["retention"], seed) if "retention" in after else None,
        seconds=seconds,
        steps=0 if plan is None else plan.steps,
        planned=0 if plan is None else plan.planned,
        rate=None if plan is None else plan.rate,
        rate_known=plan is None or plan.rate_known,
        guarded=bool(acted),
    )
    return trial, after


def _together(hits: Hits) -> np.ndarray:
    return np.concatenate([hits[kind] for kind in ("new", "old") if kind in hits])


def _side(after: np.ndarray, before: np.ndarray, seed: int, weights: np.ndarray | None = None) -> Side:
    first, second = (after, before) if weights is None else (after * weights, before * weights)
    trial = paired_bootstrap(first, second, seed)
    return Side(
        before=float(second.mean()),
        after=float(first.mean()),
        change=trial.mean,
        low=trial.low,
        high=trial.high,
        resolved=trial.resolved,
        images=len(after),
    )


def gap_between(trained: Hits, closed: Hits, scored: ScoringSets, seed: int = 0) -> Gap:
    """Compare two trials image by image."""
    weights = scored.weights(trained)
    sides = {kind: paired_bootstrap(trained[kind], closed[kind], seed) for kind in trained}
    return Gap(
        together=paired_bootstrap(_together(trained) * weights, _together(closed) * weights, seed),
        new=sides["new"],
        old=sides.get("old"),
        retention=sides.get("retention"),
    )
