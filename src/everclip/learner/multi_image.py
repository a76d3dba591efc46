"""The answers to questions about several images, as `everclip eval` records them: per task, category and question."""

from __future__ import annotations

import math

from pydantic import Field

from everclip.evaluation.multi_image import TIE, Choice, Threshold
from everclip.evaluation.multi_image_answers import MultiImageAnswers
from everclip.evaluation.results import Part, Score
from everclip.evaluation.statistics import wilson

SEED = 0
"""Of the choice of development parts: the same for all models, so that all are scored on the same questions."""


class FittedThreshold(Part):
    """A similarity above it means yes; `n` questions fitted it, with this `accuracy`, and are not scored."""

    value: float
    accuracy: float
    n: int
    seed: int = SEED


class TaskScore(Part):
    """The score of one task of a multi-image set, with that of guessing beside it.

    A `weak` task does not count in means. `threshold` is null where none is needed.
    """

    category: str
    score: Score
    guessing: float
    weak: bool = False
    threshold: FittedThreshold | None = None


class CategoryScore(Part):
    """The mean over the tasks of a category; `n` counts its questions."""

    mean: float
    guessing: float
    tasks: list[str]
    n: int


class QuestionResult(Part):
    """One answer. `prediction` is null for a tie; `margin` is null where the right answer cannot be chosen."""

    id: str
    task: str
    gold: int
    prediction: int | None
    correct: bool
    margin: float | None


class Questions(Part):
    """The answers to a multi-image set.

    Attributes:
        tasks: name of a task -> its score.
        categories: name of a category -> its mean, without weak tasks.
        left_out: name of a task that is not scored -> why; it is in no mean.
        questions: each scored question.
    """

    tasks: dict[str, TaskScore]
    categories: dict[str, CategoryScore]
    left_out: dict[str, str] = Field(default_factory=dict)
    questions: list[QuestionResult] = Field(default_factory=list)


def questions_of(
    answers: MultiImageAnswers, confidence: float, left_out: dict[str, str] | None = None
) -> Questions:
    """Return the record of the answers to a set.

    Args:
        answers: to all questions.
        confidence: of the intervals (Wilson).
        left_out: tasks that were not even asked, with the reason.
    """
    tasks = {name: _task(answers.of_task(name), name, confidence) for name in answers.names}
    strong = {name: task for name, task in tasks.items() if not task.weak}
    categories = {}
    for name in answers.strong.categories:
        members = [task for task, found in strong.items() if found.category == name]
        categories[name] = CategoryScore(
            mean=_mean([tasks[member].score.value or 0.0 for member in members]),
            guessing=_mean([tasks[member].guessing for member in members]),
            tasks=members,
            n=sum(tasks[member].score.n for member in members),
        )
    return Questions(
        tasks=tasks,
        categories=categories,
        left_out={**(left_out or {}), **answers.left_out},
        questions=[
            _question(q.id, q.name, q.gold, choice)
            for q, choice in zip(answers.questions, answers.choices, strict=True)
        ],
    )


def guessed_means(found: Questions) -> dict[str, float]:
    """Return the score of guessing of the means over tasks and over categories, by metric."""
    tasks = [task.guessing for task in found.tasks.values() if not task.weak]
    categories = [category.guessing for category in found.categories.values()]
    means = {"multi_image_task_mean": tasks, "multi_image_category_mean": categories}
    return {metric: _mean(values) for metric, values in means.items() if values}


def share_of(right: int, n: int, confidence: float = 0.95) -> Score:
    """Return a share with Wilson's interval."""
    interval = wilson(right, n, confidence)
    return Score(value=right / n, low=interval.low, high=interval.high, n=n)


def _task(answers: MultiImageAnswers, name: str, confidence: float) -> TaskScore:
    first, cut = answers.questions[0], answers.thresholds.get(name)
    return TaskScore(
        category=first.category,
        score=share_of(int(answers.correct.sum()), len(answers.questions), confidence),
        guessing=answers.guessing() or 0.0,
        weak=first.weak,
        threshold=None if cut is None else _threshold(cut),
    )


def _threshold(cut: Threshold) -> FittedThreshold:
    return FittedThreshold(value=cut.value, accuracy=cut.accuracy, n=cut.n)


def _question(name: str, task: str, gold: int, choice: Choice) -> QuestionResult:
    return QuestionResult(
        id=name,
        task=task,
        gold=gold,
        prediction=None if choice.prediction == TIE else choice.prediction,
        correct=choice.correct,
        margin=choice.margin if math.isfinite(choice.margin) else None,
    )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
