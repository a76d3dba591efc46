"""Answer all questions of a multi-image set: thresholds from a development part, scores on the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everclip.data.sampling.multi_image import MultiImageTask
from everclip.data.sampling.order import unit_hash
from everclip.evaluation import multi_image as score
from everclip.evaluation.multi_image import Choice, Threshold

DEVELOPMENT = 0.3
"""Share of the questions, by hash of their content, that fit the threshold of their task and are not scored."""

SALT = "everclip-multi-image-v1"
"""Salt of this hash; with a seed beside it."""

AMBIGUOUS = 1e-5
"""An answer with a smaller margin is counted as ambiguous."""


@dataclass(frozen=True)
class MultiImageAnswers:
    """The answers to the Q scored questions of a set.

    Attributes:
        questions: the questions, without the development part.
        choices: the answer to each.
        thresholds: name of a task -> the threshold of its yes and no.
        left_out: name of a task that could not be scored -> why.
    """

    questions: tuple[MultiImageTask, ...]
    choices: tuple[Choice, ...]
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def correct(self) -> Tensor:
        """Which questions are answered right `(Q,)` bool."""
        return torch.tensor([choice.correct for choice in self.choices], dtype=torch.bool)

    @property
    def ambiguous(self) -> int:
        """The number of questions whose answer is nearly a tie."""
        return sum(abs(choice.margin) <= AMBIGUOUS for choice in self.choices)

    def where(self, keep: Callable[[MultiImageTask], bool]) -> MultiImageAnswers:
        """Return the answers to some of the questions."""
        kept = [(q, c) for q, c in zip(self.questions, self.choices, strict=True) if keep(q)]
        return MultiImageAnswers(
            tuple(q for q, _ in kept), tuple(c for _, c in kept), self.thresholds, self.left_out
        )

    @property
    def strong(self) -> MultiImageAnswers:
        """The answers to the questions that count in means."""
        return self.where(lambda question: not question.weak)

    @property
    def names(self) -> list[str]:
        """The names of the tasks, in alphabetical order."""
        return sorted({question.name for question in self.questions})

    @property
    def categories(self) -> list[str]:
        """The categories, in alphabetical order; none without names."""
        return sorted({question.category for question in self.questions} - {""})

    def accuracy(self) -> float | None:
        """Return the share of right answers; `None` without a question."""
        return float(self.correct.double().mean()) if self.questions else None

    def guessing(self) -> float | None:
        """Return the mean probability of guessing right; `None` without a question."""
        if not self.questions:
            return None
        return math.fsum(question.guessing for question in self.questions) / len(self.questions)

    def task_mean(self) -> float | None:
        """Return the mean over tasks of the share of right answers; `None` without a question."""
        return _mean([self.of_task(name).accuracy() for name in self.names])

    def category_mean(self) -> float | None:
        """Return the mean over categories of their `task_mean`: MIRB's average; `None` without categories."""
        return _mean([self.of_category(name).task_mean() for name in self.categories])

    def of_task(self, name: str) -> MultiImageAnswers:
        """Return the answers of one task."""
        return self.where(lambda question: question.name == name)

    def of_category(self, category: str) -> MultiImageAnswers:
        """Return the answers of one category."""
        return self.where(lambda question: question.category == category)


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def answer_questions(
    questions: Sequence[MultiImageTask],
    images: Tensor,
    texts: Mapping[str, Tensor],
    seed: int = 0,
    share: float = DEVELOPMENT,
    cut_off: Collection[str] = (),
) -> MultiImageAnswers:
    """Answer questions from embeddings.

    Args:
        questions: their images are rows of `images`.
        images: embeddings `(N, D)`, unit norm.
        texts: text -> its embedding `(D,)`.
        seed: of the choice of the development part.
        share: of the questions of a task with a threshold that are its development part.
        cut_off: texts that are longer than the text tower reads; a question with one is left out.
    """
    thresholds: dict[str, Threshold] = {}
    left_out: dict[str, str] = {}
    scored: list[MultiImageTask] = []
    for name in dict.fromkeys(question.name for question in questions):
        mine = [question for question in questions if question.name == name]
        if long := [q for q in mine if not set(cut_off).isdisjoint(q.texts)]:
            what = name if len(long) == len(mine) else f"{name} ({len(long)} of {len(mine)})"
            left_out[what] = "a text is longer than the text tower reads"
            mine = [q for q in mine if q not in long]
        held = [q.needs_threshold and in_development(q, seed, share) for q in mine]
        develop = [q for q, out in zip(mine, held, strict=True) if out]
        rest = [q for q, out in zip(mine, held, strict=True) if not out]
        if develop and not rest:
            left_out[name] = f"its development part takes all of its {len(develop)} questions"
        if any(q.needs_threshold for q in rest):
            try:
                thresholds[name] = score.fit_threshold(
                    [_similarity(q, images) for q in develop], [q.gold for q in develop]
                )
            except ValueError:
                left_out[name] = (
                    f"its development part of {len(develop)} questions lacks yes or no, so it has no threshold"
                )
                continue
        scored += rest
    cut = {name: threshold.value for name, threshold in thresholds.items()}
    choices = [_answer(q, images, texts, cut.get(q.name)) for q in scored]
    return MultiImageAnswers(tuple(scored), tuple(choices), thresholds, left_out)


def in_development(question: MultiImageTask, seed: int, share: float = DEVELOPMENT) -> bool:
    """Whether a question belongs to the development part: by its content, wherever it stands."""
    return unit_hash(SALT, seed, question.content or question.id) < share


def _similarity(question: MultiImageTask, images: Tensor) -> float:
    rows = images[list(question.images)]
    return score.analogy_score(rows) if question.kind == "analogy" else score.least_similarity(rows)


def _answer(
    question: MultiImageTask, images: Tensor, texts: Mapping[str, Tensor], threshold: float | None
) -> Choice:
    given = images[list(question.images)]
    words = torch.stack([texts[text] for text in question.texts]) if question.texts else None
    if question.kind == "compare":
        return score.choose(score.odd_scores(given), question.gold)
    if question.kind == "retrieve":
        return score.choose(_retrieved(question, images, words), question.gold)
    if words is None:
        assert threshold is not None  # fitted above
        return score.decide(_similarity(question, images), threshold, question.gold)
    if question.kind == "order":
        return score.choose(score.order_scores(given, words, question.values), question.gold)
    if question.kind == "count":
        return score.count(given, words, question.values, question.gold)
    return score.decide_by_texts(given, words, question.target, question.gold)


def _retrieved(question: MultiImageTask, images: Tensor, words: Tensor | None) -> NDArray[np.float32]:
    """Return the scores of the candidates of a question of kind `retrieve`."""
    given = images[list(question.images)]
    if not question.candidates:
        assert words is not None  # checked when the question was read
        return score.retrieve_scores(given, words)
    queries = given if words is None else torch.cat([given, words])
    return score.retrieve_scores(queries, images[list(question.candidates)])
