"""Putting it together: read the data, choose by rule, measure the rate, say what was not measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from everclip.config import MethodConfig, TrainingConfig, merge, merge_training, validated
from everclip.contracts import Task
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.learner.learnable import require_learnable
from everclip.methods.build import build_method
from everclip.models.backbone import Backbone, load_backbone
from everclip.registry import method_entry
from everclip.suggest.advice import Choice, Facts, choose
from everclip.suggest.command import command
from everclip.suggest.range_test import RangeTest, TooSlow, range_test
from everclip.suggest.target import given_by
from everclip.suggest.trials import FEWEST, HELD_OUT, Trial, better, divide, try_method
from everclip.training.progress import Progress, clock

TRIAL_SECONDS = 60.0
"""How long the trial of a preset that trains by gradient may take, about."""

NOT_MEASURED = (
    "how much is forgotten: that takes a run with a retention set (docs/own-stream.md, docs/keeping.md)",
    "whether other trainable parts, more epochs or another batch size would do better: these are rules of size",
    "the rate over a whole run: a range test sees its first steps",
)


class Suggestion(BaseModel):
    """What to run, and why.

    Attributes:
        data, model: as they were named.
        facts: what the rules looked at.
        choices: settings with reasons.
        rates, losses: the sweep, step by step.
        lowest, steepest, diverged: its points.
        trials: what presets gained on held-out images of the new classes; none for captions or few images.
        command: what to type.
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
    command: tuple[str, ...]
    not_measured: tuple[str, ...] = NOT_MEASURED


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

    New classes are learned on trial by `rail` (a closed form) and by the preset that the rules chose, from four
    fifths of the images; what gains more on the other fifth is suggested.

    Args:
        data: a source of data, or a stream (a YAML file or a benchmark), whose first task is looked at.
        model: settings of the backbone; what is not given is the stream's, for a source `builtin:tiny`.
        block: settings of the `data:` block, for a source.
        training: settings to begin from (device, precision, augmentation...); they lie over the stream's.
        steps: of the range test.
        trial_seconds: how long the trial of a preset may take, about; 0: no trials.
        sweep_seconds: how long the range test may take, about; without it as long as it takes.
        progress: where costs and progress are shown.

    Raises:
        ConfigError: for data, a model or settings that do not exist.
        DataError: for data from which nothing can be learned.
    """
    show = progress or Progress(quiet=True)
    show.say(f"reading {data}")
    given = given_by(data, model or {}, block or {})
    settings = _Training(given.training, training or {})
    show.say(f"loading {given.backbone.name}")
    backbone = load_backbone(given.backbone)
    facts = _facts(given.task, backbone, settings)
    choices = choose(facts)
    learner = _learner(backbone, choices, settings)
    require_learnable(learner.method, [given.task], learner.training.batch_size)
    found, rate, step_seconds = _rate(learner, given.task, steps, sweep_seconds, show)
    choices.append(rate)
    trials: tuple[Trial, ...] = ()
    if trial_seconds > 0:
        pace = _Pace(trial_seconds, step_seconds, learner.training.batch_size)
        trials = _trials(given.task, backbone, choices, settings, pace, show)
    if trials and better(*trials):
        choices = [Choice(key="method", value=trials[0].method, reason=_why_closed_form(trials))]
    return Suggestion(
        data=data,
        model=given.backbone.name,
        facts=vars(facts),
        choices=tuple(choices),
        **_curve(found),
        trials=trials,
        command=command(data, given.stream, given.named, block or {}, training or {}, choices),
        not_measured=(
            *(NOT_MEASURED if found is not None else (*NOT_MEASURED[:2], "the learning rate")),
            *_without_trial(given.task, trials, trial_seconds),
        ),
    )


def _curve(found: RangeTest | None) -> dict[str, Any]:
    """Return the sweep and its points as `Suggestion` holds them; without a test nothing."""
    if found is None:
        return {"rates": (), "losses": (), "smooth": (), "lowest": None, "steepest": None, "diverged": None}
    return {
        name: getattr(found, name) for name in ("rates", "losses", "smooth", "lowest", "steepest", "diverged")
    }


def _rate(
    learner: Learner, task: Task, steps: int, budget: float | None, show: Progress
) -> tuple[RangeTest | None, Choice, float]:
    """Measure the learning rate; where no test fits the time, that of the preset or the stream stays.

    Returns:
        The test, the choice, and the seconds of a training step.
    """
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


@dataclass(frozen=True)
class _Training:
    """Training settings of the stream, and those that were asked for: these win over a preset's."""

    stream: Mapping[str, Any]
    asked: Mapping[str, Any]

    def under(self, preset: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """Return the settings with which a preset learns for some steps."""
        return merge_training(
            merge_training(merge_training(self.stream, preset), self.asked), {"steps": steps}
        )


def _facts(task: Task, backbone: Backbone, training: _Training) -> Facts:
    import torch

    return Facts(
        rows=len(task.train),
        pictures=len(set(task.train.identities())),
        classes=None if task.classes is None else len(task.classes),
        validation=0 if task.val is None else len(task.val),
        parameters=sum(p.numel() for p in backbone.parameters()),
        grows=_grows(backbone),
        gpu=torch.cuda.is_available() and training.under({}, 1).get("device") != "cpu",
    )


def _grows(backbone: Backbone) -> bool:
    """Whether modules of low rank fit this model, tried on a copy of its own."""
    try:
        build_method(MethodConfig(settings={"trainable": ["lora"]}), copy.deepcopy(backbone))
    except ConfigError:
        return False
    return True


def _learner(
    backbone: Backbone,
    choices: Sequence[Choice],
    training: _Training,
    steps: int = 1,
    merges: bool = False,
) -> Learner:
    """Build the learner that the choices describe; a sweep needs no replay, and no merge at the end."""
    wanted = {choice.key: choice.value for choice in choices}
    preset = method_entry(str(wanted["method"]))
    own: dict[str, Any] = {"trainable": wanted["method.trainable"], "replay": {"kind": "none"}}
    chosen = {
        key.removeprefix("method.merge."): v for key, v in wanted.items() if key.startswith("method.merge.")
    }
    own["merge"] = chosen if merges and chosen else {"kind": "none"}
    settings = merge(preset.settings, own)
    method = build_method(MethodConfig(name=preset.name, settings=settings), copy.deepcopy(backbone))
    document = training.under(preset.training, steps)
    document["batch_size"] = wanted["training.batch_size"]
    if "training.lr" in wanted:
        document["lr"] = wanted["training.lr"]
    return Learner(method, validated(TrainingConfig, document, "training"))


def _closed_form(backbone: Backbone, training: _Training) -> Learner:
    preset = method_entry("rail")
    chosen = MethodConfig(name=preset.name, settings=preset.settings)
    method = build_method(chosen, copy.deepcopy(backbone))
    return Learner(method, validated(TrainingConfig, training.under(preset.training, 1), "training"))


@dataclass(frozen=True)
class _Pace:
    """What fits the time of a trial.

    Attributes:
        seconds: that a trial may take.
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
        """Images that can be encoded: a step goes forward and back, which is about three times as much."""
        return int(self.seconds / (self.step / self.batch / 3))


def _trials(
    task: Task,
    backbone: Backbone,
    choices: Sequence[Choice],
    training: _Training,
    pace: _Pace,
    show: Progress,
) -> tuple[Trial, ...]:
    """Try `rail` and what the rules chose; nothing for captions, or too few images to tell anything.

    Args:
        task: what would be learned first.
        backbone: the model; every trial takes a copy.
        choices: of the rules, with the measured rate.
        training: settings to begin from.
        pace: what the time allows.
        show: where the cost is said.
    """
    divided = None if task.classes is None else divide(task, pace.images)
    if divided is None:
        return ()
    wanted = {choice.key: choice.value for choice in choices}
    planned = max(1, wanted["training.epochs"] * len(task.train) // wanted["training.batch_size"])
    rows = f"{len(divided[0].train):,} images learned, {len(divided[1]):,} scored"
    show.say(f"trial of rail: {rows}, {clock(pace.seconds)} at most")
    trials = [try_method(_closed_form(backbone, training), *divided)]
    if pace.steps:
        steps = min(planned, pace.steps)
        show.say(f"trial of {wanted['method']}: {steps:,} steps, about {clock(steps * pace.step)}")
        trained = _learner(backbone, choices, training, steps, merges=True)
        trials.append(try_method(trained, *divided, planned))
    return tuple(trials)


def _without_trial(task: Task, trials: Sequence[Trial], seconds: float) -> tuple[str, ...]:
    """Say why classes were not learned on trial; nothing where they were, and for captions."""
    if trials or task.classes is None:
        return ()
    if seconds <= 0:
        why = "--trial-seconds is 0"
    elif divide(task) is None:
        enough = round(1.2 * FEWEST / HELD_OUT)  # which images are held out goes by hash
        why = f"too few images for a trial, which scores {FEWEST} or more; some {enough} training images are enough"
    else:
        why = f"--trial-seconds={seconds:g} is too short for {FEWEST} images to score on"
    return (f"whether `rail` learns these classes better: {why}. Run both, then `everclip compare`",)


def _why_closed_form(trials: Sequence[Trial]) -> str:
    """Say what was measured and what follows from the method itself."""
    closed, *others = trials
    text = f"gained {100 * closed.change:+.1f} points on {closed.images} held-out images"
    text += "".join(f", {other.method} {100 * other.change:+.1f}" for other in others)
    text += "; the model's weights stay as they are, so that nothing else is lost"
    for other in others:
        if other.short:
            text += (
                f". {other.method} took {other.steps:,} of its {other.planned:,} steps only and may gain more: a "
                f"longer trial (--trial-seconds) or a run with method={other.method} tells"
            )
    return text


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
