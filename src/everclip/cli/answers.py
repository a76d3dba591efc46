"""`everclip eval mirb|mmvp --answers FILE`: score what a generative model answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from everclip.cli.multi_image_text import guessing_text, score_text
from everclip.cli.printing import json_text
from everclip.errors import ConfigError

if TYPE_CHECKING:
    from everclip.diagnosis.answer_scores import AnswerScores

BENCHMARKS = ("mirb", "mmvp")


def score_answers(
    benchmark: str, answers: Path, on: Sequence[str], published_rule: bool, as_json: bool
) -> None:
    """Score a file of answers and print the result.

    Raises:
        ConfigError: for another benchmark, or if the published files are not named.
        DataError: for a wrong file; names file and row.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigError(f"--answers: to which benchmark? Expected mirb or mmvp, found {benchmark!r}.")
    if len(on) > 1 or (benchmark == "mirb" and not on):
        raise ConfigError(f"--answers: name the folder of {benchmark.upper()} once, with --on FOLDER.")
    from everclip.diagnosis.mirb_answers import score_mirb
    from everclip.diagnosis.mmvp_answers import score_mmvp
    from everclip.files import user_path

    folder = user_path(on[0], "--on") if on else None
    if benchmark == "mirb" and folder is not None:
        scores = score_mirb(answers, folder, published_rule)
    else:
        scores = score_mmvp(answers, folder, published_rule)
    if as_json:
        document = scores.model_dump(mode="json")
        typer.echo(json_text(document))
    else:
        _print(scores)


def _print(scores: AnswerScores) -> None:
    for note in scores.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{scores.benchmark}, {scores.answers}, percent [95 % interval], rule: {scores.rule}")
    width = max(22, *map(len, scores.tasks))
    names = dict.fromkeys(task.category for task in scores.tasks.values())
    for category in names:
        if category:
            typer.echo(f"  {category}")
        for name, task in scores.tasks.items():
            if task.category != category:
                continue
            undecided = f"   undecided: {task.undecided}" if task.undecided else ""
            apart = "" if task.counted else "   a variant: in no mean"
            line = f"    {name:<{width}} {score_text(task.score)}{guessing_text(task.guessing)}"
            typer.echo(line + undecided + apart)
        mean = scores.categories.get(category)
        if mean is not None:
            typer.echo(f"    {'mean':<{width}} {100 * mean.value:5.1f}{guessing_text(mean.guessing)}")
    if scores.mean is not None:
        label = "MIRB average"
        typer.echo(
            f"  {label:<{width + 2}} {100 * scores.mean.value:5.1f}{guessing_text(scores.mean.guessing)}"
        )
    if scores.pairs is not None:
        typer.echo(f"  {'pairs, both right':<{width + 2}} {score_text(scores.pairs)}{guessing_text(1 / 4)}")
