"""`everclip eval`: measure any model on any data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from everclip.cli.answers import BENCHMARKS, score_answers
from everclip.cli.multi_image_text import print_questions
from everclip.cli.options import Json, on_this_machine
from everclip.cli.printing import json_text
from everclip.errors import ConfigError

if TYPE_CHECKING:
    from everclip.evaluation.results import Score
    from everclip.learner.evaluate import Evaluation, Measured

    Kind = Literal["auto", "retrieval", "classification", "pairs", "multi-image"]

SHOWN = {
    "classification": ("accuracy", "top5", "mean_class_accuracy"),
    "retrieval": ("text_to_image_r1", "image_to_text_r1", "mean_r1", "mean_r5"),
    "pairs": ("pair_text_to_image", "pair_image_to_text", "pair_both"),
    "multi-image": (),
}


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A run folder (or its URL), a saved learner, an export, or a backbone (builtin:photo, ViT-B-32...); "
            "with --answers the benchmark that was answered: mirb or mmvp."
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings as key=value: backbone.weights=FILE data.columns.image=file evaluation.top_k=[1,5]"
        ),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", help="Data, or a benchmark (name or YAML file); may be repeated."),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            help="Text around a class name (or a caption of pairs), with {} in its place; several are averaged.",
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="auto, pairs, multi-image, retrieval or classification.")
    ] = "auto",
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Encode every image again, and do not store features.")
    ] = False,
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers",
            help="A generative model's answers (.jsonl), to score in place of a model.",
            callback=on_this_machine,
        ),
    ] = None,
    published_rule: Annotated[
        bool,
        typer.Option("--published-rule", help="Score answers as the published code does, with its defects."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a model on data.

    Measures pairs of images if there is a column `pair`, questions about several images if there is a column
    `question`, retrieval both ways if there are captions, else classification. Each image is encoded once per model;
    the features stay in the cache folder (EVERCLIP_CACHE).

    Example: everclip eval runs/shop --on test.csv --on photos/ --template "a photo of a {}"

    Example: everclip eval ViT-B-32 backbone.weights=model.pt --on test.csv --json

    Several images: everclip eval builtin:tiny --on emoji-multi-image

    Answers of a generative model: everclip eval mirb --answers answers.jsonl --on MIRB/
    """
    if answers is not None:
        if settings or template or kind != "auto" or no_cache:
            raise ConfigError("--answers: takes --on, --published-rule and --json; nothing is encoded.")
        score_answers(model, answers, on or (), published_rule, as_json)
        return
    if published_rule:
        raise ConfigError("--published-rule: applies to --answers only.")
    if model in BENCHMARKS and not Path(model).exists():
        raise ConfigError(
            f"eval: {model} is a benchmark, no model. Measure a model with everclip eval MODEL --on FOLDER, or score "
            f"answers with everclip eval {model} --answers FILE.jsonl."
        )
    if not on:
        raise ConfigError("eval: no data to measure on; name data or a benchmark with --on DATA.")
    if kind not in ("auto", *SHOWN):
        raise ConfigError(
            f"--kind: {kind!r} is not known; expected auto, pairs, multi-image, retrieval or classification."
        )
    from everclip.templates import templates_of

    templates = templates_of(template, "--template") if template else None
    evaluation = _measure(model, settings or [], on, templates, kind, no_cache, as_json)
    if as_json:
        typer.echo(json_text(evaluation.model_dump(mode="json")))
    else:
        print_evaluation(evaluation)


def _measure(
    model: str,
    settings: list[str],
    on: list[str],
    templates: tuple[str, ...] | None,
    kind: str,
    no_cache: bool,
    quiet: bool,
) -> Evaluation:
    sections = sections_of(settings, "eval")
    from everclip.config import EvaluationConfig, validated
    from everclip.data.reading.spec import DataSpec
    from everclip.files import cache_folder
    from everclip.learner.evaluate import evaluate_model, is_benchmark, source_of
    from everclip.store.loading import load_any
    from everclip.training.progress import Progress

    cache = None if no_cache else str(cache_folder() / "features")
    config = validated(EvaluationConfig, {"cache": cache, **sections["evaluation"]}, "evaluation")
    block = sections["data"]
    targets = [
        t if is_benchmark(t) else validated(DataSpec, {"source": source_of(t), **block}, "data") for t in on
    ]
    progress = Progress(quiet=quiet)
    progress.start("evaluate", 0)
    evaluation = evaluate_model(
        load_any(model, sections["backbone"]),
        model,
        targets,
        templates,
        cast("Kind", kind),  # checked by the caller
        config,
        lambda done, total: progress.update(done, "images", total),
    )
    progress.finish()
    return evaluation


def sections_of(settings: list[str], verb: str) -> dict[str, dict[str, Any]]:
    """Return the settings of the backbone, the data block and the evaluation.

    Args:
        settings: as `key=value`; keys of the data block may stand alone (`columns.image=file`).
        verb: the command, for messages.

    Raises:
        ConfigError: for another setting.
    """
    from everclip.config import BackboneConfig, EvaluationConfig, merge
    from everclip.data.reading.spec import DataSpec
    from everclip.errors import did_you_mean
    from everclip.overrides import overrides_document, types_of

    sections = {"backbone": BackboneConfig, "data": DataSpec, "evaluation": EvaluationConfig}
    document = overrides_document(settings, {**types_of(DataSpec), **sections})
    known = ("backbone", "data", "evaluation")
    for key in set(document) & set(DataSpec.model_fields):  # as `check` and `init-config` take them
        document["data"] = merge(document.get("data", {}), {key: document.pop(key)})
    for key, value in document.items():
        if key not in known or not isinstance(value, dict):
            raise ConfigError(f"{key}: no setting of {verb}.{did_you_mean(key, known)}")
    return {key: document.get(key, {}) for key in known}


def _span(score: Score) -> str:
    if score.low is None or score.high is None:
        return ""
    return f"  [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _count(score: Score) -> str:
    return "" if score.value is None else f"  {round(score.value * score.n):,} of {score.n:,}"


def _print_patterns(part: Measured) -> None:
    """Print the right pairs of each pattern, text to image, and their mean over the patterns."""
    if not part.patterns:
        return
    width = max(map(len, part.patterns))
    typer.echo("  text to image, by pattern:")
    for name, scores in part.patterns.items():
        score = scores["pair_text_to_image"]
        typer.echo(f"    {name:<{width}} {100 * (score.value or 0):5.1f}{_span(score)}{_count(score)}")
    mean = part.scores["pair_pattern_mean"]
    guessing = _guessing(part, "pair_pattern_mean")
    typer.echo(f"    {'mean of patterns':<{width}} {100 * (mean.value or 0):5.1f}{guessing}")


def _guessing(part: Measured, metric: str) -> str:
    return f"  (guessing: {100 * part.guessing[metric]:.1f})" if metric in part.guessing else ""


def print_evaluation(evaluation: Evaluation) -> None:
    """Print an evaluation as text: for each set and protocol its scores in percent, with intervals."""
    for note in evaluation.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{evaluation.model} ({evaluation.method}), percent [95 % interval]")
    for part in evaluation.sets:
        classes = f", {part.classes} classes" if part.classes is not None else ""
        typer.echo(f"{part.name} ({part.kind}, {part.samples} rows{classes}; answers: {part.protocol})")
        for metric in SHOWN[part.kind]:
            score = part.scores.get(metric)
            if score is None or score.value is None:
                continue
            if metric == "top5" and part.classes is not None and part.classes <= 5:
                continue  # always 100 %
            counted = _count(score) if part.kind == "pairs" else ""
            shown = f"{100 * score.value:5.1f}{_span(score)}{counted}{_guessing(part, metric)}"
            typer.echo(f"  {metric:<20} {shown}")
        _print_patterns(part)
        if part.questions is not None:
            print_questions(part.questions, part.scores, part.guessing)
    source = (
        "all features from the cache" if not evaluation.encoded else f"{evaluation.encoded} images encoded"
    )
    typer.echo(f"{evaluation.seconds:.1f} s; {source}")
