"""Putting it together: read the data, choose by rule, measure the rate, say what was not measured."""

from __future__ import annotations

import copy
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
    hold_trials,
    planned_steps,
)
from everclip.prepare.suggest.command import command
from everclip.prepare.suggest.range_test import RangeTest, TooSlow, range_test
from everclip.prepare.suggest.scored import FEWEST, HELD_OUT, divide
from everclip.prepare.suggest.target import Given, given_by
from everclip.prepare.suggest.trials import Gap, Trial
from everclip.prepare.suggest.verdict import decide
from everclip.training.progress import Progress, clock

TRIAL_SECONDS = 120.0
"""How long the trial of a preset that trains by gradient may take, about."""

FORGOTTEN = (
    "how much is forgotten: that takes a run with a retention set (docs/own-stream.md, docs/keeping.md)"
)
FORGOTTEN_ELSE = (
    "what is forgotten beside these images. If the model was trained on the old ones among them, they score too high "
    "before the trial: a loss looks larger, a gain smaller"
)
RULES = "whether other trainable parts, more epochs or another batch size would do better: these are rules of size"
WHOLE_RUN = "the rate over a whole run: a range test sees its first steps"


class Suggestion(BaseModel):
    """What to run, and why.

    Attributes:
        data, model: as they were named.
        facts: what the rules looked at.
        choices: settings with reasons.
        rates, losses: the sweep, step by step.
        lowest, steepest, diverged: its points.
        trials: what presets learned and kept on held-out images; none for captions or few images.
        gap: by how much the preset that trains was ahead; `None` without two trials.
        decided: whether the trials tell which preset to take; without trials the rules do.
        command: what to type; where nothing is decided, what would decide.
        not_measured: what nobody should believe this knows.
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

    New classes are learned on trial by `rail` (a closed form) and by the preset that the rules chose, as their runs
    would learn them: with the same rate, guard and replay, on a schedule of fewer steps where the time asks for it.
    What is better on old and new images together is suggested (`everclip.prepare.suggest.verdict`).

    Args:
        data: a source of data, or a stream (a YAML file or a benchmark), whose first task is looked at.
        model: settings of the backbone; what is not given is the stream's, for a source `builtin:tiny`.
        block: settings of the `data:` block, for a source.
        training: training settings that are given (device, augmentation, lr, epochs...); they lie over the stream's.
        steps: of the range test.
        trial_seconds: how long the trial of a preset may take, about; 0: no trials.
        sweep_seconds: how long the range test may take, about; without it as long as it takes.
        progress: where costs and progress are shown.

    Raises:
        ConfigError: for data, a model or settings that do not exist.
        DataError: for data from which nothing can be learned.
    """
    show, asked = progress or Progress(quiet=True), training or {}
    show.say(f"reading {data}")
    given = given_by(data, model or {}, block or {})
    show.say(f"loading {given.backbone.name}")
    backbone = load_backbone(given.backbone)
    candidates = Candidates(given, backbone, TrainingSettings(given.training, asked))
    facts = _facts(given.task, backbone, candidates.training)
    choices = _as_given(choose(facts), asked)
    learner = candidates.trained(choices, {"steps": 1})
    require_learnable(learner.method, [given.task], learner.training.batch_size, base=learner.base)
    found, rate, step_seconds = _rate(learner, given.task, asked, steps, sweep_seconds, show)
    choices.append(rate)
    known = found is not None or "lr" in asked
    held = _held(candidates, learner, choices, known, trial_seconds, step_seconds, show)
    choices, decided = _decided(choices, held)
    other = None if decided or held is None else held.closed.method
    return Suggestion(
        data=data,
        model=given.backbone.name,
        facts=vars(facts),
        choices=tuple(choices),
        **_curve(found),
        trials=() if held is None else held.trials,
        gap=None if held is None else held.gap,
        decided=decided,
        command=command(data, given.stream, given.named, block or {}, asked, choices, other),
        not_measured=_not_measured(given, found, "lr" in asked, held, trial_seconds),
    )


def _held(
    candidates: Candidates,
    learner: Learner,
    choices: Sequence[Choice],
    rate_known: bool,
    trial_seconds: float,
    step_seconds: float,
    show: Progress,
) -> Outcome | None:
    """Hold the trials within the time; nothing for captions, few images, or without time."""
    task = candidates.given.task
    if trial_seconds <= 0 or task.classes is None or divide(task) is None:
        return None
    named = {choice.key.removeprefix("training."): choice.value for choice in choices}
    planned = planned_steps(learner, task, {key: named[key] for key in BUDGET_KEYS if key in named})
    # A busy moment makes a step look slower than it is, never quicker.
    step_seconds = min(step_seconds, _step_seconds(learner, task, trial_seconds / 20))
    pace = Pace(trial_seconds, step_seconds, learner.training.batch_size)
    return hold_trials(candidates, choices, rate_known, planned, pace, show)


def _as_given(choices: Sequence[Choice], asked: Mapping[str, Any]) -> list[Choice]:
    """Return the choices of the rules, with the budget and the batch size that were given in place of theirs."""
    given = {key: value for key, value in asked.items() if value is not None}
    budget = next((key for key in BUDGET_KEYS if key in given), "epochs")
    found = []
    for choice in choices:
        name = choice.key.removeprefix("training.")
        name = budget if name == "epochs" else name
        own = choice.key.startswith("training.") and name in given
        found.append(Choice(key=f"training.{name}", value=given[name], reason="as given") if own else choice)
    return found


def _decided(choices: Sequence[Choice], held: Outcome | None) -> tuple[list[Choice], bool]:
    """Return the choices after the trials, and whether these decided between the presets.

    Without trials the rules decide. Where nothing is decided the choices stay those of the preset that trains.
    """
    if held is None:
        return list(choices), True
    verdict = decide(held.closed, held.trained, held.gap, held.why)
    if verdict.method == held.closed.method:
        return [Choice(key="method", value=verdict.method, reason=verdict.reason)], True
    decided = verdict.method is not None
    reason = verdict.reason if decided else f"not decided. {verdict.reason}"
    return [
        Choice(key="method", value=c.value, reason=reason) if c.key == "method" else c for c in choices
    ], decided


def _not_measured(
    given: Given, found: RangeTest | None, rate_given: bool, held: Outcome | None, trial_seconds: float
) -> tuple[str, ...]:
    looked = held is not None and (held.scored.old is not None or bool(held.scored.retention))
    lines = [FORGOTTEN_ELSE if looked else FORGOTTEN, RULES]
    if found is not None:
        lines.append(WHOLE_RUN)
    elif not rate_given:
        lines.append("the learning rate")
    return (*lines, *_without_trial(given.task, held, trial_seconds))


def _curve(found: RangeTest | None) -> dict[str, Any]:
    """Return the sweep and its points as `Suggestion` holds them; without a test nothing."""
    if found is None:
        return {"rates": (), "losses": (), "smooth": (), "lowest": None, "steepest": None, "diverged": None}
    return {
        name: getattr(found, name) for name in ("rates", "losses", "smooth", "lowest", "steepest", "diverged")
    }


def _rate(
    learner: Learner,
    task: Task,
    asked: Mapping[str, Any],
    steps: int,
    budget: float | None,
    show: Progress,
) -> tuple[RangeTest | None, Choice, float]:
    """Measure the learning rate, unless it is given; where no test fits the time, that of the stream stays.

    Returns:
        The test, the choice, and the seconds of a training step.
    """
    if "lr" in asked:
        return (
            None,
            Choice(key="training.lr", value=asked["lr"], reason="as given"),
            _step_seconds(learner, task),
        )
    started = time.monotonic()
    try:
        found = range_test(learner, task, steps, budget=budget, progress=show)
    except TooSlow as slow:
        why = (
            f"not measured: the shortest range test takes about {clock(slow.seconds)}, --sweep-seconds allows "
            f"{clock(budget or 0)}; it is the rate of the preset or the stream"
        )
        return None, Choice(key="training.lr", value=learner.training.lr, reason=why), slow.step_seconds
    choice = Choice(key="training.lr", value=found.rate, reason=_spoken(found))
    # The sweep goes over its batches twice.
    return found, choice, found.step_seconds or (time.monotonic() - started) / (2 * steps)


def _step_seconds(learner: Learner, task: Task, limit: float = 12.0) -> float:
    """Return the seconds of a training step; the weights stay."""
    learner.method.begin_task(task, learner.past())
    phase = next(p for p in learner.plan(task) if p.optimiser is not None)
    return float(learner.engine.measure(learner.method, phase, limit))


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
    """Whether modules of low rank fit this model, tried on a copy of its own."""
    try:
        build_method(MethodConfig(settings={"trainable": ["lora"]}), copy.deepcopy(backbone))
    except ConfigError:
        return False
    return True


def _without_trial(task: Task, held: Outcome | None, seconds: float) -> tuple[str, ...]:
    """Say why classes were not learned on trial; nothing where they were, and for captions."""
    if held is not None or task.classes is None:
        return ()
    if seconds <= 0:
        why = "--trial-seconds is 0"
    elif divide(task) is None:
        enough = round(1.2 * FEWEST / HELD_OUT)  # which images are held out goes by hash
        why = f"too few images for a trial, which scores {FEWEST} or more; some {enough} training images are enough"
    else:
        why = f"--trial-seconds={seconds:g} is too short for {FEWEST} images to score on"
    return (f"whether `rail` learns these classes better: {why}. Run both, then `everclip compare`",)


def _spoken(found: RangeTest) -> str:
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
