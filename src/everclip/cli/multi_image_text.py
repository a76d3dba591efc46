"""Prints the answers to questions about several images: per task, with the score of guessing beside each number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from everclip.evaluation.results import Score
    from everclip.learner.multi_image import FittedThreshold, Questions

MEANS = (
    ("mean over categories", "multi_image_category_mean", "categories"),
    ("mean over tasks", "multi_image_task_mean", "tasks"),
)


def print_questions(found: Questions, scores: Mapping[str, Score], guessing: Mapping[str, float]) -> None:
    """Print scores in percent: tasks by category, then the means, then what is left out.

    Args:
        found: the answers.
        scores: the scores of the set, by metric.
        guessing: the score of guessing, by metric.
    """
    width = max(20, *map(len, found.tasks), *(len(f"{name}, mean") for name in found.categories))
    for category in sorted({task.category for task in found.tasks.values()}):
        group = found.categories.get(category)
        if category:
            typer.echo(f"  {category}")
        for name, task in found.tasks.items():
            if task.category == category:
                apart = "   weak: in no mean" if task.weak else ""
                line = f"    {name:<{width}} {score_text(task.score)}{guessing_text(task.guessing)}"
                typer.echo(line + _threshold(task.threshold) + apart)
        if group is not None and len(group.tasks) > 1:
            line = f"    {category + ', mean':<{width}} {100 * group.mean:5.1f}"
            typer.echo(f"{line}{guessing_text(group.guessing)}")
    for label, metric, of in MEANS:
        score = scores.get(metric)
        if score is not None and score.value is not None:
            line = f"  {label:<{width + 2}} {100 * score.value:5.1f}  of {score.n} {of}"
            typer.echo(f"{line}{guessing_text(guessing.get(metric))}")
    everything = scores.get("multi_image_accuracy")
    if everything is not None and everything.value is not None:
        level = guessing_text(guessing.get("multi_image_accuracy"))
        typer.echo(f"  {'all questions':<{width + 2}} {score_text(everything)}{level}")
    if found.left_out:
        typer.echo("  left out of every mean:")
        for name, why in found.left_out.items():
            typer.echo(f"    {name:<{width}} {why}")


def score_text(score: Score) -> str:
    """Return a share in percent with its interval and its count."""
    if score.value is None or score.low is None or score.high is None:
        return "    -"
    right = round(score.value * score.n)
    return (
        f"{100 * score.value:5.1f}  [{100 * score.low:.1f}, {100 * score.high:.1f}]  {right:,} of {score.n:,}"
    )


def guessing_text(share: float | None) -> str:
    """Return the score of guessing in percent, to stand behind a score; empty for none."""
    return "" if share is None else f"  (guessing: {100 * share:.1f})"


def _threshold(cut: FittedThreshold | None) -> str:
    return "" if cut is None else f"   yes above {cut.value:.4f}, fitted on {cut.n} other questions"
