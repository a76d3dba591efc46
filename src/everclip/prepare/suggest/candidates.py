"""The candidates of a suggestion, closed forms and the preset that trains, and their trials."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from everclip.config import GuardConfig, MethodConfig, TrainingConfig, merge, merge_training, validated
from everclip.contracts import Task
from everclip.errors import DivergedError
from everclip.learner import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import Backbone
from everclip.prepare.suggest.advice import Choice
from everclip.prepare.suggest.scoring import (
    Hits,
    ScoringSets,
    guard_sets,
    hits_of,
    scoring_sets,
    split_task,
)
from everclip.prepare.suggest.target import Target
from everclip.prepare.suggest.time_limit import TimeLimit, within_time
from everclip.prepare.suggest.trials import Gap, Plan, Trial, gap_between, try_method
from everclip.registry import MethodEntry, method_entry
from everclip.scenarios.base import ListScenario
from everclip.training.budget import phase_steps
from everclip.training.guard import watchable
from everclip.training.progress import Progress, clock

CLOSED_FORMS = ("rail", "text-ridge")
"""The presets that learn classes in closed form, which costs much less than training. The better one is a candidate."""

FOR_CAPTIONS = ("text-ridge",)
"""Those that learn captions too."""


def closed_forms(task: Task) -> tuple[str, ...]:
    """Return the closed forms that can learn a task."""
    return FOR_CAPTIONS if task.classes is None else CLOSED_FORMS


@dataclass(frozen=True)
class TrainingSettings:
    """Training settings of the stream, and explicit ones, which take precedence over those of a preset."""

    stream: Mapping[str, Any]
    explicit: Mapping[str, Any]

    def under(self, preset: Mapping[str, Any], budget: Mapping[str, Any]) -> dict[str, Any]:
        """Return the training settings of a preset with a budget, such as `{"steps": 3}`."""
        return merge_training(merge_training(merge_training(self.stream, preset), self.explicit), budget)


@dataclass(frozen=True)
class Candidates:
    """Builds the learners of the presets, each on a copy of the model.

    Attributes:
        target: the task, stream and settings.
        backbone: the start model.
        training: training settings.
    """

    target: Target
    backbone: Backbone
    training: TrainingSettings

    def trained(
        self, choices: Sequence[Choice], budget: Mapping[str, Any], share: float = 1.0, merges: bool = False
    ) -> Learner:
        """Return the learner for choices, as a run would build it.

        Args:
            choices: settings, including the preset.
            budget: how long it trains.
            share: share of the run's schedule; warm-up and cool-down in steps shrink with it.
            merges: whether weights are merged at the end; not in a range test.
        """
        wanted = {choice.key: choice.value for choice in choices}
        preset = method_entry(str(wanted["method"]))
        document = self.training.under(preset.training, budget)
        document["batch_size"] = wanted["training.batch_size"]
        if "training.lr" in wanted:
            document["lr"] = wanted["training.lr"]
        for key in ("warmup", "cooldown"):
            if document.get(key, 0) >= 1:  # in steps; a share needs no change
                document[key] = max(1, round(document[key] * share))
        return self._learner(self._method(wanted, merges), document)

    def closed_form(self, name: str) -> Learner:
        """Return the learner of a closed form."""
        preset = method_entry(name)
        return self._learner(self._named(preset), self.training.under(preset.training, {"steps": 1}))

    def sweeps(self, choices: Sequence[Choice]) -> bool:
        """Whether the preset that trains chooses alpha of its merge on the task's validation images."""
        merging = self._method({c.key: c.value for c in choices}, merges=True).settings.get("merge", {})
        return bool(merging.get("kind") == "wise-ft" and merging.get("alpha") == "sweep")

    def _method(self, wanted: Mapping[str, Any], merges: bool) -> MethodConfig:
        """Return the method for choices."""
        settings: dict[str, Any] = {"trainable": wanted["method.trainable"]}
        if self._stream is None or self._stream.base is None:  # a first task has nothing to replay
            settings["replay"] = {"kind": "none"}
        chosen = {k.removeprefix("method.merge."): v for k, v in wanted.items() if "method.merge." in k}
        if chosen or not merges:
            settings["merge"] = chosen if merges else {"kind": "none"}
        named = self._named(method_entry(str(wanted["method"])))
        return MethodConfig(name=named.name, settings=merge(named.settings, settings))

    def _named(self, preset: MethodEntry) -> MethodConfig:
        """Return a preset, with the settings of the stream if the stream names it."""
        named = self.target.method
        if named is not None and named.name == preset.name:
            return named
        return MethodConfig(name=preset.name, settings=dict(preset.settings))

    @property
    def _stream(self) -> ListScenario | None:
        return self.target.scenario

    def _learner(self, method: MethodConfig, training: Mapping[str, Any]) -> Learner:
        built = build_method(method, copy.deepcopy(self.backbone))
        learner = Learner(built, validated(TrainingConfig, dict(training), "training"))
        if self._stream is not None:
            learner.follow(self._stream)
        return learner

    def guard(self, learner: Learner, most: int) -> None:
        """Let the guard watch a trial as in a run, if the stream has sets to watch."""
        limits = merge(self.target.guard, method_entry(learner.method.preset).guard)
        sets = [] if self._stream is None else watchable(self._stream)
        if sets and limits.get("max_drop") is not None:
            guard = learner.watch(guard_sets(sets, most), validated(GuardConfig, limits, "guard"))
            guard.tell = lambda kind, message: None  # the trial reports what the guard did


@dataclass(frozen=True)
class Pace:
    """How much work fits into the time of a trial.

    Attributes:
        seconds: time limit of a trial.
        step: seconds of a training step.
        batch: samples of a step.
    """

    seconds: float
    step: float
    batch: int

    @property
    def steps(self) -> int:
        """Gradient steps."""
        return int(self.seconds / self.step)

    @property
    def images(self) -> int:
        """Images that can be encoded; forward and backward in a step take about three times as long."""
        return int(self.seconds / (self.step / self.batch / 3))


@dataclass(frozen=True)
class Outcome:
    """The results of the trials.

    Attributes:
        closed: the trial of the better closed form.
        others: the trials of the other closed forms.
        trained: the trial of the preset that trains; `None` if it was not tried.
        gap: the difference between it and `closed`.
        scored: the images that they were scored on.
        why: why the preset that trains was not tried.
    """

    closed: Trial
    others: tuple[Trial, ...]
    trained: Trial | None
    gap: Gap | None
    scored: ScoringSets
    why: str = ""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials as a list."""
        closed = (self.closed, *self.others)
        return closed if self.trained is None else (*closed, self.trained)


def planned_steps(learner: Learner, task: Task, budget: Mapping[str, Any]) -> int:
    """Return the gradient steps of a learner for a task and a budget; replay may add steps."""
    config = validated(
        TrainingConfig, merge_training(learner.training.model_dump(exclude_unset=True), budget), "training"
    )
    phases = [phase for phase in learner.plan(task) if phase.optimiser is not None]
    return max(1, sum(phase_steps(phase, config) for phase in phases))


def run_trials(
    candidates: Candidates,
    choices: Sequence[Choice],
    rate_known: bool,
    planned: int,
    pace: Pace,
    show: Progress,
) -> Outcome | None:
    """Try the closed forms and the preset that trains; return `None` if there are too few images.

    Args:
        candidates: builds the learners.
        choices: the choices of the rules, with the learning rate.
        rate_known: whether the rate was measured or given.
        planned: steps of the suggested run.
        pace: how much work fits into the time.
        show: shows cost and progress.
    """
    target = candidates.target
    divided = split_task(target.task, pace.images, candidates.sweeps(choices))
    if divided is None:
        return None
    task, rows = divided
    scored = scoring_sets(target.task, rows, target.scenario, pace.images)
    steps = min(planned, pace.steps)
    show.say(_cost(task, scored, pace, steps, planned))
    learners = [candidates.closed_form(name) for name in closed_forms(task)]
    before = hits_of(learners[0], scored)
    tried = [try_method(learner, task, scored, before) for learner in learners]
    tried.sort(key=lambda result: result[0].together.after, reverse=True)  # of equal ones, the first named
    closed, closed_hits = tried[0]
    others = tuple(trial for trial, _ in tried[1:])
    if not steps:
        return Outcome(
            closed,
            others,
            None,
            None,
            scored,
            "--trial-seconds is too short for one step of a preset that trains",
        )

    def attempt(steps: int, limit: float) -> tuple[Trial, Hits]:
        learner = candidates.trained(choices, {"steps": steps}, steps / planned, merges=True)
        candidates.guard(learner, pace.images)
        plan = Plan(steps, planned, learner.training.lr, rate_known)
        named = replace(task, name=f"on trial ({learner.method.preset})")
        watcher = TimeLimit(named, learner.plan(task), learner.training, show, limit)
        return try_method(learner, task, scored, before, plan, watcher)

    try:
        trained, hits = within_time(attempt, steps, pace.seconds, show)
    except DivergedError as error:
        return Outcome(closed, others, None, None, scored, f"training diverged: {error.args[0]}")
    finally:
        show.finish()
    return Outcome(closed, others, trained, gap_between(hits, closed_hits, scored), scored)


def _cost(task: Task, scored: ScoringSets, pace: Pace, steps: int, planned: int) -> str:
    """Return a line on the cost of the trials, shown before they begin."""
    images = sum(len(part.table) for parts in scored.parts.values() for part in parts)
    count = len(closed_forms(task))
    encoding = (count * len(task.train) + (count + 2) * images) * pace.seconds / max(1, pace.images)
    return (
        f"trials: {len(task.train):,} images learned, {images:,} scored, {steps:,} of {planned:,} gradient steps; "
        f"about {clock(encoding + steps * pace.step)}"
    )
