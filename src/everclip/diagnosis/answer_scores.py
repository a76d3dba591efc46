"""The scores of a generative model's answers, as `everclip eval mirb --answers` and `mmvp --answers` record them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from everclip.evaluation.results import Part, Score
from everclip.learner.multi_image import share_of


class AnswerResult(Part):
    """One answer. `read` is what the rule read in the text; null if nothing could be decided, which is wrong."""

    id: str
    task: str
    gold: str
    read: str | None
    correct: bool


class AnsweredTask(Part):
    """The score of one task. `undecided` counts its answers in which nothing could be read."""

    category: str
    score: Score
    guessing: float
    undecided: int
    counted: bool = True


class AnsweredMean(Part):
    """A mean over tasks or categories, in [0, 1]."""

    value: float
    guessing: float
    of: list[str]


class AnswerScores(Part):
    """The scores of a file of answers.

    Attributes:
        benchmark: `mirb` or `mmvp`.
        answers: the file.
        rule: `mended` or `published`.
        tasks: name of a task -> its score.
        categories: of MIRB: name -> the mean over its tasks, without variants.
        mean: of MIRB: the mean over the four categories, if every task is there.
        pairs: of MMVP: pairs whose two answers are right.
        notes: what is to be said about the rule and the data.
        questions: each answer.
    """

    benchmark: Literal["mirb", "mmvp"]
    answers: str
    rule: Literal["mended", "published"]
    tasks: dict[str, AnsweredTask]
    categories: dict[str, AnsweredMean] = Field(default_factory=dict)
    mean: AnsweredMean | None = None
    pairs: Score | None = None
    notes: list[str] = Field(default_factory=list)
    questions: list[AnswerResult] = Field(default_factory=list)


def task_score(
    category: str, results: Sequence[AnswerResult], guessing: Sequence[float], counted: bool = True
) -> AnsweredTask:
    """Return the score of the answers of one task; `guessing` of each question."""
    return AnsweredTask(
        category=category,
        score=share_of(sum(result.correct for result in results), len(results)),
        guessing=math.fsum(guessing) / len(guessing),
        undecided=sum(result.read is None for result in results),
        counted=counted,
    )


def mean_of(values: dict[str, tuple[float, float]]) -> AnsweredMean:
    """Return the mean of scores and of guessing."""
    shares, guesses = zip(*values.values(), strict=True)
    return AnsweredMean(
        value=math.fsum(shares) / len(shares), guessing=math.fsum(guesses) / len(guesses), of=list(values)
    )
