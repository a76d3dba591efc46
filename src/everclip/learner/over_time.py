"""Measure two models on the static suite and the dated sets of a stream, for `everclip over-time`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from everclip.config import EvaluationConfig, resolve_config
from everclip.contracts import EvalSet
from everclip.data.reading.spec import DataSpec
from everclip.errors import ConfigError, DataError
from everclip.evaluation.assemble import column_info
from everclip.evaluation.headline import metric_of
from everclip.evaluation.scoring import RowScorer
from everclip.evaluation.set_features import SetFeatures, Tick
from everclip.learner.core import Learner
from everclip.learner.evaluate import read_set
from everclip.report.over_time import OverTime, over_time
from everclip.report.paired import Answered
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.scenarios.measuring import PLAIN

Outcomes = Mapping[str, torch.Tensor]


def measure_over_time(
    models: Mapping[str, Learner],
    stream: str,
    static: Sequence[str | DataSpec] = (),
    templates: tuple[str, ...] = PLAIN,
    kind: str | None = None,
    config: EvaluationConfig | None = None,
    tick: Tick = lambda done, total: None,
) -> OverTime:
    """Score two models on the same items and compare them.

    The dated sets are those of the stream's tasks, oldest first, after the base if it holds earlier rows of the same
    data. The static suite is the stream's retention suite, a base with data of its own, and `static`. Every set is
    scored as after the last task, so that both models choose among the same answers whatever they learned.

    Args:
        models: names -> two models.
        stream: name or YAML file of a benchmark.
        static: further data of the static suite.
        templates: texts around the class names of these data.
        kind: `retrieval` or `classification`, for a stream whose tasks are measured in both ways; default: that of its
            score matrix.
        config: confidence, batch size, cache.
        tick: called with (images done, all images) while encoding.

    Raises:
        ConfigError: if the stream has no dated set, or none of this kind.
        DataError: if both models have no common item in a set.
    """
    settings = config or EvaluationConfig()
    scenario = load_scenario(resolve_config(stream).scenario)
    notes = []
    if scenario.spec.kind != "time":
        notes.append(
            f"{stream} is a stream of kind {scenario.spec.kind}: its sets stand in the order of its tasks."
        )
    dated = dated_sets(scenario, kind)
    if not dated:
        what = f"no {kind} set per task" if kind else "no set per task (one_test)"
        raise ConfigError(f"over-time: {stream} has {what}, so nothing is dated.")
    own_base = scenario.spec.base is not None and scenario.spec.base.data is not None
    suite = [s for s in scenario.eval_sets if s.group == "retention" or (s.group == "known" and own_base)]
    read = [read_set(target, None if templates == PLAIN else templates) for target in static]
    notes += [line for *_, lines in read for line in lines]
    sets = [*suite, *(replace(s, group="retention", task=None) for _, s, _ in read), *dated]
    _require_unique(sets)
    measured = replace(scenario, eval_sets=tuple(sets))
    outcomes = [_outcomes(learner, measured, settings, notes.append, tick) for learner in models.values()]
    first, second = models
    return over_time(
        (first, second),
        [_answered(s, s in dated, measured, outcomes) for s in sets],
        stream,
        scenario.shown_protocol,
        settings.confidence,
        [*notes, *(line for name, learner in models.items() for line in _seen(name, learner, sets))],
    )


def dated_sets(scenario: ListScenario, kind: str | None) -> list[EvalSet]:
    """Return the sets of the tasks in order, after that of a base which holds earlier rows of the same data."""
    tasks = [s for s in scenario.eval_sets if s.group == "task" and s.task is not None]
    known = [s for s in scenario.eval_sets if s.group == "known"]
    if kind is not None and any(s.kind != kind for s in tasks):  # measured in another way, too: `part`
        names = {task.index for task in scenario.tasks}
        parts = [s for s in scenario.eval_sets if s.group == "part" and s.kind == kind]
        tasks = [s for s in parts if s.task is not None]
        known = [s for s in parts if s.task is None]
        tasks = tasks if {s.task for s in tasks} == names and len(tasks) == len(names) else []
    base = scenario.spec.base
    earlier = bool(tasks) and base is not None and base.data is None
    return [*(known if earlier else []), *sorted(tasks, key=lambda s: s.task or 0)]


def _require_unique(sets: Sequence[EvalSet]) -> None:
    names = [s.name for s in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"over-time: two sets are named {twice!r}; rename the file, or leave one out.")


def _outcomes(
    learner: Learner,
    scenario: ListScenario,
    settings: EvaluationConfig,
    warn: Callable[[str], None],
    tick: Tick,
) -> Outcomes:
    """Return the outcome of every item under every protocol and metric."""
    learner.features.folders.keep_in(None, settings, warn)
    sets = SetFeatures(scenario.eval_sets, learner.features, settings.batch_size)
    learned = [task.index for task in scenario.tasks]
    return RowScorer(scenario, sets, settings, learner.seed, {}).row(learner.method, learned, tick).outcomes


def _answered(s: EvalSet, dated: bool, scenario: ListScenario, outcomes: Sequence[Outcomes]) -> Answered:
    metric = metric_of(column_info(s), scenario.spec.headline.model_dump())
    key = f"{s.name}/{scenario.shown_protocol}/{metric}"
    if any(key not in found for found in outcomes):
        raise DataError(
            f"over-time: {s.name} has no outcomes per item for {metric} (protocol {scenario.shown_protocol}); set "
            "scenario.headline.metric to a mean over items, such as accuracy or mean_r1."
        )
    first, second = (np.asarray(found[key].numpy(), dtype=np.float64) for found in outcomes)
    if len(first) != len(second):
        raise DataError(
            f"over-time: {s.name} has {len(first):,} captions with different tokens for the first model and "
            f"{len(second):,} for the second, so {metric} has no pairs of items; set scenario.headline.metric to "
            "mean_r1 or image_to_text_r1."
        )
    return Answered(s.name, metric, dated, first, second)


def _seen(name: str, learner: Learner, sets: Sequence[EvalSet]) -> list[str]:
    """Name the sets with images that a model was trained on."""
    found = [(s.name, learner.pictures.among(s.data)) for s in sets] if len(learner.pictures) else []
    return [
        f"{name} was trained on {count:,} images of {of}, so its score there is too good."
        for of, count in found
        if count
    ]
