"""Metrics of an evaluation set of questions about several images.

A function takes `MultiImageAnswers`: the answers to all scored questions. Tasks that are marked weak do not count. If
its metric has an interval, it returns one value per question `(Q,)`, whose mean is the score. Otherwise it returns the
score and the number of tasks or categories behind it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from everclip.metrics import metric

if TYPE_CHECKING:
    from torch import Tensor

    from everclip.evaluation.multi_image_answers import MultiImageAnswers

_questions = partial(metric, kind="multi-image")


@_questions(
    "multi_image_accuracy",
    label="Questions",
    meaning="Share of questions about several images that are answered right; a tie is wrong.",
    formula="mean [the right candidate has the largest score, or the similarity is on the right side of its threshold]",
    interval="wilson",
    pooled=True,
)
def multi_image_accuracy(answers: MultiImageAnswers) -> Tensor:
    """Return the hits per question."""
    return answers.strong.correct


@_questions(
    "multi_image_task_mean",
    label="Questions, mean over tasks",
    meaning="Mean over the tasks of each task's share of right answers.",
    formula="mean_t mean_{task t} [right]",
)
def multi_image_task_mean(answers: MultiImageAnswers) -> tuple[float | None, int]:
    """Return the mean over the tasks, and their number."""
    return answers.strong.task_mean(), len(answers.strong.names)


@_questions(
    "multi_image_category_mean",
    label="Questions, mean over categories",
    meaning="Mean over the categories of the mean over their tasks; only tasks that are scored.",
    formula="MIRB average: mean_c mean_{t in c} mean_{task t} [right]",
)
def multi_image_category_mean(answers: MultiImageAnswers) -> tuple[float | None, int]:
    """Return the mean over the categories, and their number."""
    return answers.strong.category_mean(), len(answers.strong.categories)


@_questions(
    "multi_image_guessing",
    label="Questions, guessing",
    meaning="The share of right answers that guessing reaches, on average over the questions.",
    formula="mean 1 / number of answers to choose from",
    higher_is_better=None,
)
def multi_image_guessing(answers: MultiImageAnswers) -> tuple[float | None, int]:
    """Return the score of guessing, and the number of questions."""
    return answers.strong.guessing(), len(answers.strong.questions)
