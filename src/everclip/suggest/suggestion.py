"""Putting it together: read the data, choose by rule, measure the rate, say what was not measured."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from everclip.config import (
    BUDGET_KEYS,
    BackboneConfig,
    MethodConfig,
    TrainingConfig,
    merge,
    merge_training,
    resolve_config,
    validated,
)
from everclip.contracts import Task
from everclip.data.spec import DataSpec
from everclip.errors import ConfigError
from everclip.learner import Learner
from everclip.learner.learnable import require_learnable
from everclip.learner.taking import make_task
from everclip.methods.build import build_method
from everclip.models.backbone import load_backbone
from everclip.registry import method_entry
from everclip.scenarios.load import load_scenario
from everclip.suggest.advice import Choice, Facts, choose
from everclip.suggest.range_test import RangeTest, range_test
from everclip.suggest.trials import Trial, better, divide, try_method

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
    lowest: float
    steepest: float | None
    diverged: float | None
    trials: tuple[Trial, ...]
    command: tuple[str, ...]
    not_measured: tuple[str, ...] = NOT_MEASURED


def suggest(
    data: str,
    model: BackboneConfig,
    block: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    steps: int = 48,
    trial_seconds: float = TRIAL_SECONDS,
) -> Suggestion:
    """Suggest settings for learning `data` with `model`.

    New classes are learned on trial by `rail` (a closed form) and by the preset that the rules chose, from four
    fifths of the images; what gains more on the other fifth is suggested.

    Args:
        data: a source of data, or a stream (a YAML file or a benchmark), whose first task is looked at.
        model: the backbone.
        block: settings of the `data:` block, for a source.
        training: settings to begin from (device, precision, augmentation...).
        steps: of the range test.
        trial_seconds: how long the trial of a preset that trains by gradient may take; 0: no trials.

    Raises:
        ConfigError: for data, a model or settings that do not exist.
        DataError: for data from which nothing can be learned.
    """
    task, stream, given = _task(data, block or {})
    settings = merge_training(given, training or {})
    backbone = load_backbone(model)
    facts = _facts(task, model, sum(p.numel() for p in backbone.parameters()), settings)
    choices = choose(facts)
    learner = _learner(model, choices, settings)
    require_learnable(learner.method, [task], learner.training.batch_size)
    started = time.monotonic()
    found = range_test(learner, task, steps)
    step_seconds = (time.monotonic() - started) / (2 * steps)  # the sweep goes over its batches twice
    choices.append(Choice(key="training.lr", value=found.rate, reason=_spoken(found, steps)))
    most = int(trial_seconds / step_seconds)
    trials = _trials(task, model, choices, settings, most) if trial_seconds > 0 else ()
    if trials and better(*trials):
        choices = [Choice(key="method", value=trials[0].method, reason=_why_closed_form(trials))]
    return Suggestion(
        data=data,
        model=model.name,
        facts=vars(facts),
        choices=tuple(choices),
        rates=found.rates,
        losses=found.losses,
        smooth=found.smooth,
        lowest=found.lowest,
        steepest=found.steepest,
        diverged=found.diverged,
        trials=trials,
        command=_command(data, stream, model, block or {}, training or {}, choices),
    )


def _task(data: str, block: Mapping[str, Any]) -> tuple[Task, bool, dict[str, Any]]:
    """Return what would be learned first, whether a stream was named, and its training settings."""
    if data.endswith((".yaml", ".yml")) or _is_benchmark(data):
        if block:
            raise ConfigError(f"suggest: {data} is a stream; settings of a data block belong into it.")
        config = resolve_config(data)
        return load_scenario(config.scenario).tasks[0], True, config.training.model_dump(exclude_unset=True)
    spec = validated(DataSpec, {"source": data, **block}, "data")
    return make_task(spec, 0, None, ("{}",), 0.1), False, {}


def _is_benchmark(name: str) -> bool:
    from everclip.registry import benchmarks

    return name.partition("@")[0] in benchmarks()


def _facts(task: Task, model: BackboneConfig, parameters: int, training: Mapping[str, Any]) -> Facts:
    import torch

    return Facts(
        rows=len(task.train),
        pictures=len(set(task.train.identities())),
        classes=None if task.classes is None else len(task.classes),
        validation=0 if task.val is None else len(task.val),
        parameters=parameters,
        grows=_grows(model),
        gpu=torch.cuda.is_available() and training.get("device") != "cpu",
    )


def _grows(model: BackboneConfig) -> bool:
    """Whether modules of low rank fit this model, tried on a copy of its own."""
    try:
        build_method(MethodConfig(settings={"trainable": ["lora"]}), load_backbone(model))
    except ConfigError:
        return False
    return True


def _learner(
    model: BackboneConfig,
    choices: Sequence[Choice],
    training: Mapping[str, Any],
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
    method = build_method(
        MethodConfig(name=preset.name, settings=merge(preset.settings, own)), load_backbone(model)
    )
    document = merge_training(merge_training(training, preset.training), {"steps": steps})
    document["batch_size"] = wanted["training.batch_size"]
    if "training.lr" in wanted:
        document["lr"] = wanted["training.lr"]
    return Learner(method, validated(TrainingConfig, document, "training"))


def _closed_form(model: BackboneConfig, training: Mapping[str, Any]) -> Learner:
    preset = method_entry("rail")
    method = build_method(MethodConfig(name=preset.name, settings=preset.settings), load_backbone(model))
    document = merge_training(merge_training(training, preset.training), {"steps": 1})
    return Learner(method, validated(TrainingConfig, document, "training"))


def _trials(
    task: Task, model: BackboneConfig, choices: Sequence[Choice], training: Mapping[str, Any], most: int
) -> tuple[Trial, ...]:
    """Try `rail` and what the rules chose; nothing for captions, or too few images to tell anything.

    Args:
        task: what would be learned first.
        model: the backbone.
        choices: of the rules, with the measured rate.
        training: settings to begin from.
        most: gradient steps that the time allows.
    """
    divided = None if task.classes is None else divide(task)
    if divided is None:
        return ()
    wanted = {choice.key: choice.value for choice in choices}
    planned = max(1, wanted["training.epochs"] * len(task.train) // wanted["training.batch_size"])
    trials = [try_method(_closed_form(model, training), *divided)]
    if most:
        trained = _learner(model, choices, training, min(planned, most), merges=True)
        trials.append(try_method(trained, *divided, planned))
    return tuple(trials)


def _why_closed_form(trials: Sequence[Trial]) -> str:
    """Say what was measured and what follows from the method itself."""
    closed, *others = trials
    text = f"gained {100 * closed.change:+.1f} points on {closed.images} held-out images"
    text += "".join(f", {other.method} {100 * other.change:+.1f}" for other in others)
    return f"{text}; the model's weights stay as they are, so that nothing else is lost"


def _spoken(found: RangeTest, steps: int) -> str:
    points = [f"lowest loss at {found.lowest:.1e}"]
    if found.steepest is not None:
        points.append(f"steepest fall at {found.steepest:.1e}")
    points.append(
        "no divergence" if found.diverged is None else f"worse than the start from {found.diverged:.1e}"
    )
    return f"range test over {len(found.rates)} of {steps} steps ({', '.join(points)}): {found.why}"


def _command(
    data: str,
    stream: bool,
    model: BackboneConfig,
    block: Mapping[str, Any],
    training: Mapping[str, Any],
    choices: list[Choice],
) -> tuple[str, ...]:
    """Return the commands to type, with all that was given; a source of data needs its stream written first."""
    file = data if stream else f"{Path(data.rstrip('/')).name.partition('.')[0] or 'mine'}.yaml"
    first = ["everclip", "init-config", data, *_flat(block), "-o", file]
    given = model.model_dump(mode="json", exclude_unset=True, exclude={"name"})
    chosen = {choice.key for choice in choices}
    kept = {
        key: value
        for key, value in training.items()
        if f"training.{key}" not in chosen and key not in BUDGET_KEYS
    }
    words = [f"backbone={model.name}", *_flat(given, "backbone."), *_flat(kept, "training.")]
    words += [f"{choice.key}={_value(choice.value)}" for choice in choices]
    run = shlex.join(["everclip", "run", file, *words])
    return (run,) if stream else (shlex.join(first), run)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(block: Mapping[str, Any], prefix: str = "") -> list[str]:
    words = []
    for key, value in block.items():
        words += (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else [f"{prefix}{key}={_value(value)}"]
        )
    return words
