"""Measure any model on any data, for `everclip eval`. Every image is encoded once per model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from everclip import registry
from everclip.config import EvaluationConfig, resolve_config, validated
from everclip.contracts import EvalSet
from everclip.data.reading.formats.emoji_questions import NAME as EMOJI_QUESTIONS
from everclip.data.reading.formats.listing import notes_without
from everclip.data.reading.formats.mirb import tasks_left_out
from everclip.data.reading.formats.system_files import brief
from everclip.data.reading.formats.template_files import templates_beside
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.data.sampling.same_texts import Tokenise
from everclip.errors import ConfigError, DataError
from everclip.evaluation.confusions import read_confusions
from everclip.evaluation.guessing import guessed
from everclip.evaluation.headline import NEVER_TASKS
from everclip.evaluation.results import FILE, Part, Results, Score
from everclip.evaluation.scoring import RowScorer, RowScores
from everclip.evaluation.set_features import SetFeatures, Tick
from everclip.files import user_path
from everclip.learner.core import Learner
from everclip.learner.multi_image import Questions, guessed_means, questions_of
from everclip.models.layout import BESIDE
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import load_scenario
from everclip.scenarios.measuring import (
    PLAIN,
    MeasuredSets,
    class_name_notes,
    measured_set,
    same_text_notes,
    single_answer_note,
)
from everclip.templates import GivenTemplates, templates_of
from everclip.training import environment
from everclip.training.run_folder import CONFIG
from everclip.training.run_place import local_run

Kind = Literal["auto", "retrieval", "classification", "pairs", "multi-image"]


class Measured(Part):
    """One evaluation set under one protocol: `scores[metric]`, shares in [0, 1] with 95 % intervals.

    `templates` are the texts around its class names, where they are its own. `patterns[pattern][metric]` are the scores
    of the pairs of one pattern. `guessing[metric]` is the expected score of guessing, of a set of pairs or of questions
    about several images, whose answers are `questions`.
    """

    on: str
    name: str
    kind: str
    group: str
    protocol: str
    samples: int
    classes: int | None
    scores: dict[str, Score]
    ambiguous: int | None = None
    templates: list[str] | None = None
    patterns: dict[str, dict[str, Score]] = Field(default_factory=dict)
    guessing: dict[str, float] = Field(default_factory=dict)
    questions: Questions | None = None


class Evaluation(Part):
    """The result of `everclip eval`. `encoded` counts the images that were not in the cache."""

    model: str
    method: str
    towers: dict[str, str]
    sets: list[Measured]
    templates: list[str]
    notes: list[str] = Field(default_factory=list)
    encoded: int = 0
    seconds: float = 0.0
    provenance: dict[str, Any] = Field(default_factory=dict)


def load_model(model: str, backbone: dict[str, Any] | None = None) -> Learner:
    """Load a run folder, a saved learner, an export or any backbone as a learner for prediction.

    Args:
        model: a folder or a backbone's name.
        backbone: further settings of a backbone (`weights`...).

    Raises:
        ConfigError, CheckpointError: if there is no such model.
    """
    folder = local_run(model, "model")
    if (folder / CONFIG).is_file():
        if backbone:
            raise ConfigError(
                f"backbone.{next(iter(backbone))}: {model} is a run, so its backbone cannot be changed."
            )
        return Learner.load(folder)
    for name, (what, script) in BESIDE.items():
        if (folder / name).is_file():
            raise ConfigError(
                f"{model}: an export with a {what} ({name}). Only {script} in that folder reads it; without it the "
                "answers would be those of the model before it learned. Name the run folder instead."
            )
    return Learner.create({"name": model, **(backbone or {})}, "zero-shot")


def learned_names(model: str, learner: Learner) -> list[str]:
    """Return the names of all classes that a learner or a run learned; empty if its folder does not name all of them.

    Args:
        model: the argument of `load_model`.
        learner: the learner that it returned.

    Raises:
        DataError: if the run's results or its file of answers per class are damaged.
    """
    head = learner.method.class_head() if learner.learned else None
    if head is not None:
        return list(dict.fromkeys(entry.name for entry in head.entries))
    if learner.learned and learner.tasks:  # a saved learner keeps its tasks with their classes
        return list(dict.fromkeys(entry.name for task in learner.tasks for entry in task.classes or ()))
    folder = local_run(model, "model")
    if not learner.learned or not (folder / FILE).is_file():
        return []
    results = Results.read(folder)
    names: dict[str, str] = {}
    counts: Counter[int] = Counter()
    for answers in read_confusions(folder, len(results.rows) - 1).values():
        for one in answers.classes:
            learned = learner.learned.intersection(one.tasks)
            if learned and one.key not in names:
                names[one.key] = one.name
                counts.update(learned)
    # The file leaves out classes without test images.
    whole = all(task.classes == counts[task.index] for task in results.tasks if task.index in learner.learned)
    return list(dict.fromkeys(names.values())) if whole else []


def evaluate_model(
    learner: Learner,
    model: str,
    on: Sequence[str | DataSpec],
    templates: GivenTemplates | None = None,
    kind: Kind = "auto",
    config: EvaluationConfig | None = None,
    tick: Tick = lambda done, total: None,
) -> Evaluation:
    """Score a model on data sets, each on its own, or on the evaluation sets of benchmarks.

    Args:
        learner: the model.
        model: how the result calls it.
        on: data (see `DataSpec.source`; test rows if a column `split` marks some), or the name or YAML file of a
            benchmark, whose sets are scored under its own protocols as before its first task.
        templates: texts around class names of data; benchmarks have their own. Default: those of a file beside the
            data (`zeroshot_classification_templates.txt`), else the name alone.
        kind: of data; `auto` takes questions about several images, or pairs, where there is a column `question` or
            `pair`, retrieval where there are captions, else classification.
        config: top-k, confidence, batch size, cache.
        tick: called with (images done, all images) while encoding.
    """
    settings = config or EvaluationConfig()
    texts = None if templates is None else templates_of(templates, "templates")
    started = time.monotonic()
    features, before = learner.features, learner.features.encoded
    found: list[Measured] = []
    notes = [f"{model}: {line}" for line in getattr(learner.method.backbone, "notes", ())]
    features.folders.keep_in(None, settings, notes.append)
    for target in on:
        own = None if texts is not None else _own_templates(target)[0]
        name, scenario, lines = _scenario(target, texts, kind)
        notes += [*lines, *same_text_lines(scenario, learner.method.backbone.tokenise)]
        notes += _learned_from(learner, scenario.eval_sets)
        sets = SetFeatures(scenario.eval_sets, features, settings.batch_size)
        rows = RowScorer(scenario, sets, settings, learner.seed, {}).row(
            learner.method, learner.learned if isinstance(scenario, MeasuredSets) else (), tick
        )
        for s in scenario.eval_sets:
            for protocol, scores in rows.scores[s.name].items():
                shown = protocol == scenario.shown_protocol
                part = _measured(name, s, protocol, scores, own)
                found.append(_with_details(part, rows, settings.confidence, target) if shown else part)
    return Evaluation(
        model=model,
        method=learner.method.preset,
        towers=learner.method.backbone.fingerprints(),
        sets=found,
        templates=list(texts or PLAIN),
        notes=notes,
        encoded=features.encoded - before,
        seconds=round(time.monotonic() - started, 3),
        provenance=environment.describe(str(learner.accelerator.device)),
    )


def _own_templates(target: str | DataSpec) -> tuple[tuple[str, ...] | None, str]:
    """Return the templates that lie beside data, and their file; a benchmark has its own."""
    if isinstance(target, str) and is_benchmark(target):
        return None, ""
    return templates_beside((target,) if isinstance(target, str) else target.sources) or (None, "")


def _of_file(name: str, templates: Sequence[str], file: str) -> str:
    shown = brief(map(repr, templates))
    return f"{name}: texts around class names are the {len(templates):,} of {file} ({shown}; --template to change)"


def _scenario(
    target: str | DataSpec, templates: tuple[str, ...] | None, kind: Kind
) -> tuple[str, Any, list[str]]:
    """Return name, evaluation sets, and what is to be said about reading them."""
    if isinstance(target, str) and is_benchmark(target):
        scenario = load_scenario(resolve_config(target).scenario)
        lines = [q.summary() for q in scenario.quarantine if q.entries] + list(scenario.guesses)
        return target, scenario, lines
    label, measured, lines = read_set(target, templates, kind)
    return label, MeasuredSets((measured,)), lines


def read_set(
    target: str | DataSpec, templates: tuple[str, ...] | None, kind: Kind = "auto"
) -> tuple[str, EvalSet, list[str]]:
    """Read data as one evaluation set.

    Args:
        target: data, see `DataSpec.source`; test rows if a column `split` marks some.
        templates: texts around class names, or the one around the captions of pairs; default: those of a file beside
            the data (`zeroshot_classification_templates.txt`), else see `measured_set`.
        kind: see `evaluate_model`.

    Returns:
        Their name, the set, and what is to be said about reading them.
    """
    spec = validated(DataSpec, {"source": source_of(target)}, "data") if isinstance(target, str) else target
    loaded = read(spec)
    wanted = None if kind == "auto" else kind
    own, file = (None, "") if templates is not None else _own_templates(target)
    lines = [*loaded.guesses, *([loaded.quarantine.summary()] if loaded.quarantine.entries else [])]
    measured = measured_set(loaded.table, own or templates, wanted, lines.append)
    if own is not None and measured.classes:
        lines = [*notes_without(lines, [Path(file).name]), _of_file(spec.label, own, file)]
    if len(measured.data) < len(loaded.table) and measured.kind not in NEVER_TASKS:
        lines.append(
            f"{spec.label}: {len(measured.data):,} of {len(loaded.table):,} rows are scored: those with a "
            f"{'caption' if measured.kind == 'retrieval' else 'class'}, and of these the ones marked test if any are"
        )
    return spec.label, measured, lines


def same_text_lines(scenario: ListScenario | MeasuredSets, tokenise: Tokenise) -> list[str]:
    """Say which classes share an answer or have codes for names, and which sets of a benchmark have one answer alone.

    Raises:
        DataError: for data of one answer: a score on them says nothing.
    """
    lonely = [line for s in scenario.eval_sets if (line := single_answer_note(s, tokenise)) is not None]
    if lonely and isinstance(scenario, MeasuredSets):
        raise DataError(
            f"{lonely[0]}. Give data with more than one class or caption, or measure on a stream (STREAM.yaml) that "
            "has the other names, too."
        )
    return [
        *lonely,
        *same_text_notes(scenario.eval_sets, tokenise),
        *class_name_notes(scenario.eval_sets),
    ]


def _learned_from(learner: Learner, sets: Sequence[EvalSet]) -> list[str]:
    """Name the sets with images that the model was trained on."""
    found = [(s, learner.pictures.among(s.data)) for s in sets] if len(learner.pictures) else []
    return [
        f"{s.name}: this model was trained on {count:,} of its images, so its scores are too good; measure on images "
        "that the model has not seen"
        for s, count in found
        if count
    ]


def is_benchmark(target: str) -> bool:
    """Whether a name stands for a benchmark or a YAML file rather than for data."""
    return target.endswith((".yaml", ".yml")) or target.partition("@")[0] in registry.benchmarks()


def source_of(target: str) -> str:
    """Return the source that a name of data stands for: `emoji-multi-image@1` is built in."""
    return f"builtin:{target}" if target.partition("@")[0] == EMOJI_QUESTIONS else target


def _with_details(part: Measured, rows: RowScores, confidence: float, target: str | DataSpec) -> Measured:
    """Add what is measured under one protocol only."""
    answers = rows.questions.get(part.name)
    questions = None
    if answers is not None:
        sources = (target,) if isinstance(target, str) else target.sources
        lost = [tasks_left_out(user_path(source, "data"), answers.names) for source in sources]
        questions = questions_of(answers, confidence, {n: why for one in lost for n, why in one.items()})
    return part.model_copy(
        update={
            "ambiguous": rows.ambiguous.get(part.name),
            "patterns": rows.patterns.get(part.name, {}),
            "questions": questions,
            "guessing": part.guessing | ({} if questions is None else guessed_means(questions)),
        }
    )


def _measured(
    on: str,
    s: EvalSet,
    protocol: str,
    scores: dict[str, Score],
    templates: Sequence[str] | None,
) -> Measured:
    return Measured(
        on=on,
        name=s.name,
        kind=s.kind,
        group=s.group,
        protocol=protocol,
        samples=len(s.data),
        classes=None if s.classes is None else len(s.classes),
        scores=scores,
        guessing=guessed(s.kind, scores),
        templates=None if templates is None or s.classes is None else list(templates),
    )
