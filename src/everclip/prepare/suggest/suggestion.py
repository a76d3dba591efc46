"""Makes a suggestion: read the data, choose by rule, measure the rate, run trials."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from everclip.config import BUDGET_KEYS, MethodConfig
from everclip.contracts import Task
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.learner.learnable import require_learnable
from everclip.methods.build import build_method
from everclip.models.backbone import Backbone, load_backbone
from everclip.prepare.suggest.advice import Choice, Facts, choose
from everclip.prepare.suggest.candidates import (
    Candidates,
    Outcome,
    Pace,
    TrainingSettings,
    closed_forms,
    planned_steps,
    run_trials,
)
from everclip.prepare.suggest.command import command
from everclip.prepare.suggest.range_test import RangeTest, TooSlow, range_test
from everclip.prepare.suggest.scoring import FEWEST, HELD_OUT, split_task
from everclip.prepare.suggest.target import Target, read_target
from everclip.prepare.suggest.trials import Gap, Trial
from everclip.prepare.suggest.verdict import decide
from everclip.training.progress import Progress, clock
from everclip.training.trial import measure_seconds

TRIAL_SECONDS = 120.0
"""Approximate time limit of the trial of a preset that trains, in seconds."""

FORGETTING = (
    "forgetting: this needs a `base` with validation rows (`split.validation`), or a retention set "
    "(docs/own-stream.md, docs/keeping.md)"
)
OTHER_FORGETTING = (
    "forgetting on other images. If the model was trained on the old images above, they score too high before the "
    "trial: a loss looks larger, and a gain smaller"
)
RULES = "whether other trainable parts, epochs or batch sizes are better: these follow rules by the size of the data"
WHOLE_RUN = "the learning rate over a whole run: a range test covers only its first steps"


class Suggestion(BaseModel):
    """A suggestion of settings, with reasons.

    Attributes:
        data, model: names of data and model.
        facts: the facts that the rules use.
        choices: settings with reasons.
        rates, losses, smooth: the sweep of the range test, step by step.
        lowest, steepest, diverged: its points.
        trials: scores of presets on held-out images; none for few images.
        gap: the difference between the trials; `None` without two trials.
        decided: whether one preset is proposed; without trials the rules decide.
        command: commands to type; if nothing is decided, those that decide.
        not_measured: what the suggestion does not know.
    """

    model_config = ConfigDict(frozen=True)

    data: str
    model: str
    facts: dict[str, Any]
    choices: tuple[Choice, ...]
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smooth: tuple[float, ...]
    lowest: float | None
    steepest: float | None
    diverged: float | None
    trials: tuple[Trial, ...]
    gap: Gap | None = None
    decided: bool = True
    command: tuple[str, ...]
    not_measured: tuple[str, ...]


def suggest(
    data: str,
    model: Mapping[str, Any] | None = None,
    block: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    steps: int = 48,
    trial_seconds: float = TRIAL_SECONDS,
    sweep_seconds: float | None = None,
    progress: Progress | None = None,
) -> Suggestion:
    """Suggest settings for learning `data` with `model`.

    Closed forms (`text-ridge`, and `rail` for classes) and the preset that the rules chose are tried as in their runs:
    with the same rate, guard and replay, but with fewer steps if the time is short. The better closed form and the
    preset that trains are compared; the one that is better on old and new images together is suggested
    (`everclip.prepare.suggest.verdict`).

    Args:
        data: a source of data, or a stream (a YAML file or a benchmark), whose first task is used.
        model: settings of the backbone; default: those of the stream, or `builtin:photo` for a source.
        block: settings of the `data:` block, for a source.
        training: explicit training settings (device, lr, epochs...); they take precedence over the stream's.
        steps: steps of the range test.
        trial_seconds: approximate time limit of the trial of a preset that trains; 0: no trials.
        sweep_seconds: approximate time limit of the range test; default: none.
        progress: shows costs and progress.

    Raises:
        ConfigError: for data, a model or settings that do not exist.
        DataError: for data that cannot be learned from.
    """
    show, explicit = progress or Progress(quiet=True), training or {}
    show.say(f"reading {data}")
    target = read_target(data, model or {}, block or {})
    show.say(f"loading {target.backbone.name}")
    backbone = load_backbone(target.backbone)
    candidates = Candidates(target, backbone, TrainingSettings(target.training, explicit))
    facts = _facts(target.task, backbone, candidates.training)
    choices = _with_explicit(choose(facts), explicit)
    learner = candidates.trained(choices, {"steps": 1})
    require_learnable(learner.method, [target.task], learner.training.batch_size, base=learner.base)
    found, rate, step_seconds = _measure_rate(learner, target.task, explicit, steps, sweep_seconds, show)
    choices.append(rate)
    known = found is not None or "lr" in explicit
    outcome = _run_trials(candidates, learner, choices, known, trial_seconds, step_seconds, show)
    choices, decided = _after_trials(choices, outcome)
    other = None if decided or outcome is None else outcome.closed.method
    return Suggestion(
        data=data,
        model=target.backbone.name,
        facts=vars(facts),
        choices=tuple(choices),
        **_curve(found),
        trials=() if outcome is None else outcome.trials,
        gap=None if outcome is None else outcome.gap,
        decided=decided,
        command=command(data, target.stream, target.named, block or {}, explicit, choices, other),
        not_measured=_not_measured(target, found, "lr" in explicit, outcome, trial_seconds),
    )


def _run_trials(
    candidates: Candidates,
    learner: Learner,
    choices: Sequence[Choice],
    rate_known: bool,
    trial_seconds: float,
    step_seconds: float,
    show: Progress,
) -> Outcome | None:
    """Run the trials within the time; return `None` for few images, or no time."""
    task = candidates.target.task
    if trial_seconds <= 0 or split_task(task) is None:
        return None
    named = {choice.key.removeprefix("training."): choice.value for choice in choices}
    planned = planned_steps(learner, task, {key: named[key] for key in BUDGET_KEYS if key in named})
    # Other load makes a measured step slower than it is, never faster.
    step_seconds = min(step_seconds, _step_seconds(learner, task, trial_seconds / 20))
    pace = Pace(trial_seconds, step_seconds, learner.training.batch_size)
    return run_trials(candidates, choices, rate_known, planned, pace, show)


def _with_explicit(choices: Sequence[Choice], explicit: Mapping[str, Any]) -> list[Choice]:
    """Return the choices of the rules, with explicit budget and batch size in place of theirs."""
    explicit_values = {key: value for key, value in explicit.items() if value is not None}
    budget = next((key for key in BUDGET_KEYS if key in explicit_values), "epochs")
    found = []
    for choice in choices:
        name = choice.key.removeprefix("training.")
        name = budget if name == "epochs" else name
        is_explicit = choice.key.startswith("training.") and name in explicit_values
        found.append(
            Choice(key=f"training.{name}", value=explicit_values[name], reason="as given")
            if is_explicit
            else choice
        )
    return found


def _after_trials(choices: Sequence[Choice], outcome: Outcome | None) -> tuple[list[Choice], bool]:
    """Return the choices after the trials, and whether the trials decide between the presets.

    Without trials the rules decide. If nothing is decided, the choices remain those of the preset that trains.
    """
    if outcome is None:
        return list(choices), True
    verdict = decide(outcome.closed, outcome.trained, outcome.gap, outcome.why)
    if verdict.method == outcome.closed.method:
        return [Choice(key="method", value=verdict.method, reason=verdict.reason)], True
    return [
        Choice(key="method", value=c.value, reason=verdict.reason) if c.key == "method" else c
        for c in choices
    ], verdict.method is not None


def _not_measured(
    target: Target, found: RangeTest | None, rate_given: bool, outcome: Outcome | None, trial_seconds: float
) -> tuple[str, ...]:
    looked = outcome is not None and (outcome.scored.old is not None or bool(outcome.scored.retention))
    lines = [OTHER_FORGETTING if looked else FORGETTING, RULES]
    if found is not None:
        lines.append(WHOLE_RUN)
    elif not rate_given:
        lines.append("the learning rate")
    return (*lines, *_why_no_trial(target.task, outcome, trial_seconds))


def _curve(found: RangeTest | None) -> dict[str, Any]:
    """Return the fields of `Suggestion` on the range test; empty without a test."""
    if found is None:
        return {"rates": (), "losses": (), "smooth": (), "lowest": None, "steepest": None, "diverged": None}
    return {
        name: getattr(found, name) for name in ("rates", "losses", "smooth", "lowest", "steepest", "diverged")
    }


def _measure_rate(
    learner: Learner,
    task: Task,
    explicit: Mapping[str, Any],
    steps: int,
    budget: float | None,
    show: Progress,
) -> tuple[RangeTest | None, Choice, float]:
    """Measure the learning rate, unless it is given; if no test fits the time, keep the rate of the preset or stream.

    Returns:
        The test, the choice, and the seconds of a training step.
    """
    if "lr" in explicit:
        return (
            None,
            Choice(key="training.lr", value=explicit["lr"], reason="as given"),
            _step_seconds(learner, task),
        )
    started = time.monotonic()
    try:
        found = range_test(learner, task, steps, budget=budget, progress=show)
    except TooSlow as slow:
        needed, allowed = clock(slow.sweeps.seconds), clock(budget or 0)
        show.say(  # now, so that nobody waits for the trials to learn it
            f"range test: left out, so the learning rate is not measured: {slow}. --sweep-seconds allows {allowed}, "
            f"which fits {slow.fits} steps each; to measure it, stop this and give "
            f"--sweep-seconds={math.ceil(slow.sweeps.seconds)}"
        )
        why = (
            f"not measured: the shortest range test takes about {needed}, --sweep-seconds allows {allowed}; this is "
            "the rate of the preset or the stream"
        )
        return None, Choice(key="training.lr", value=learner.training.lr, reason=why), slow.sweeps.full_step
    choice = Choice(key="training.lr", value=found.rate, reason=_rate_reason(found))
    # The test sweeps its batches twice.
    return found, choice, found.step_seconds or (time.monotonic() - started) / (2 * steps)


def _step_seconds(learner: Learner, task: Task, limit: float = 12.0) -> float:
    """Measure the seconds of a training step; the weights stay unchanged."""
    learner.method.begin_task(task, learner.past())
    phase = next(p for p in learner.plan(task) if p.optimiser is not None)
    return measure_seconds(learner.engine, learner.method, phase, limit)


def _facts(task: Task, backbone: Backbone, training: TrainingSettings) -> Facts:
    import torch

    return Facts(
        rows=len(task.train),
        pictures=len(set(task.train.identities())),
        classes=None if task.classes is None else len(task.classes),
        validation=0 if task.val is None else len(task.val),
        parameters=sum(p.numel() for p in backbone.parameters()),
        grows=_grows(backbone),
        gpu=torch.cuda.is_available() and training.under({}, {"steps": 1}).get("device") != "cpu",
    )


def _grows(backbone: Backbone) -> bool:
    """Whether low-rank modules fit this model; tried on a copy."""
    try:
        build_method(MethodConfig(settings={"trainable": ["lora"]}), copy.deepcopy(backbone))
    except ConfigError:
        return False
    return True


def _why_no_trial(task: Task, outcome: Outcome | None, seconds: float) -> tuple[str, ...]:
    """Say why there was no trial; nothing if there was one."""
    if outcome is not None:
        return ()
    if seconds <= 0:
        why = "--trial-seconds is 0"
    elif split_task(task) is None:
        enough = round(1.2 * FEWEST / HELD_OUT)  # more, since images are held out by hash
        why = f"too few images for a trial, which scores at least {FEWEST}; about {enough} training images are enough"
    else:
        why = f"--trial-seconds={seconds:g} is too short to score {FEWEST} images"
    forms, what = (
        " or ".join(f"`{f}`" for f in closed_forms(task)),
        "captions" if task.classes is None else "classes",
    )
    return (f"whether {forms} learns these {what} better: {why}. Run them, then `everclip compare`",)


def _rate_reason(found: RangeTest) -> str:
    points = [f"lowest loss at {found.lowest:.1e}"]
    if found.steepest is not None:
        points.append(f"steepest fall at {found.steepest:.1e}")
    points.append(
        "no divergence" if found.diverged is None else f"worse than the start from {found.diverged:.1e}"
    )
    less = f"; {found.note}, to stay within the time" if found.note else ""
    return (
        f"range test over {len(found.rates)} of {found.steps} steps ({', '.join(points)}{less}): {found.why}"
    )
