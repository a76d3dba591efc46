"""Answer questions about several images from embeddings: pure functions of matrices, in NumPy or torch.

A dual encoder compares; it does not generate. It answers by the largest of some scores, or by a similarity above a
threshold. A tie is always wrong, as in pairs of images (`everclip.evaluation.pairs`). Cosines are summed in float64 and
rounded to float32, so that equal vectors have equal ones. Further sums are exact (`math.fsum`), so that the order of
images and candidates changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.floating] | Tensor
"""Embeddings `(N, D)`, unit norm."""

TIE = -1
"""The prediction where the two best candidates have equal scores, or a similarity equals its threshold."""


@dataclass(frozen=True)
class Choice:
    """The answer to one question.

    Attributes:
        prediction: the chosen candidate, `TIE`, or for yes and no 1 and 0; of `count` the number.
        correct: whether it is the right one; never for a tie.
        margin: how far the right answer is above the best wrong one; negative if it is not chosen.
    """

    prediction: int
    correct: bool
    margin: float


@dataclass(frozen=True)
class Threshold:
    """A threshold that a development part fitted.

    Attributes:
        value: a similarity above it means yes.
        accuracy: on the development part.
        n: number of questions there.
    """

    value: float
    accuracy: float
    n: int


def cosines(a: Matrix, b: Matrix) -> NDArray[np.float32]:
    """Return the cosines `(N, M)` of unit vectors `(N, D)` and `(M, D)`.

    Raises:
        ValueError: for other shapes, or a value that is not finite.
    """
    first, second = _rows(a), _rows(b)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"embeddings of {first.shape[1]} and of {second.shape[1]} values cannot be compared")
    # Products and sums element by element: a matrix product may add in another order from pair to pair.
    sums: NDArray[np.float64] = (first[:, None] * second[None]).sum(axis=-1)
    return sums.astype(np.float32)


def retrieve_scores(queries: Matrix, candidates: Matrix) -> NDArray[np.float32]:
    """Return the score `(M,)` of each candidate: its mean cosine with the queries `(Q, D)`."""
    return _means(cosines(queries, candidates).T)


def odd_scores(images: Matrix) -> NDArray[np.float32]:
    """Return how odd each of the images `(K, D)` is: minus its mean cosine with the others `(K,)`."""
    found = cosines(images, images)
    others = [np.delete(row, at) for at, row in enumerate(found)]
    return -_means(others)


def least_similarity(images: Matrix) -> float:
    """Return the smallest cosine between two of the images `(K, D)`: how alike they all are."""
    found = cosines(images, images)
    return float(found[np.triu_indices(len(found), 1)].min())


def analogy_score(images: Matrix) -> float:
    """Return `cos(A' - A, B' - B)` for the images A, A', B, B' `(4, D)`; 0 if one pair does not differ.

    Raises:
        ValueError: if there are not four images.
    """
    rows = _rows(images)
    if len(rows) != 4:
        raise ValueError(f"{len(rows)} images; an analogy has four: A, A', B, B'")
    changes = rows[[1, 3]] - rows[[0, 2]]
    sizes = np.sqrt((changes * changes).sum(axis=-1))
    if not (sizes > 0).all():
        return 0.0
    return float(np.float32((changes[0] * changes[1]).sum() / (sizes[0] * sizes[1])))


def order_scores(images: Matrix, texts: Matrix, values: Sequence[float]) -> NDArray[np.float32]:
    """Return how early each image `(K,)` lies on the scale of texts with values; the first has the largest score.

    It is minus the covariance of the image's cosines `(V,)` with the values. With two texts, it is the cosine with the
    text of the smaller value minus that with the other one, times a constant.
    """
    found = cosines(images, texts).astype(np.float64)
    centred = [value - math.fsum(values) / len(values) for value in values]
    return np.array([-math.fsum(row * centred) / len(values) for row in found], np.float32)


def best_texts(images: Matrix, texts: Matrix) -> tuple[list[int], NDArray[np.float32]]:
    """Return the best text of each image `(K,)`, or `TIE`, and by how much it is better than the second `(K,)`.

    Raises:
        ValueError: if there is only one text.
    """
    found = cosines(images, texts)
    if found.shape[1] < 2:
        raise ValueError("one text is no choice")
    ordered = np.sort(found, axis=1)
    lead = ordered[:, -1] - ordered[:, -2]
    return [int(row.argmax()) if gap > 0 else TIE for row, gap in zip(found, lead, strict=True)], lead


def choose(scores: NDArray[np.float32], gold: int) -> Choice:
    """Choose the candidate with the largest score; a tie for the first place is wrong.

    Args:
        scores: of the candidates `(M,)`.
        gold: the right one; `gold >= M` for an answer that is no candidate, which is never chosen.
    """
    best = np.flatnonzero(scores == scores.max())
    prediction = int(best[0]) if len(best) == 1 else TIE
    if gold >= len(scores):
        return Choice(prediction, False, -math.inf)
    others = np.delete(scores, gold)
    margin = float(scores[gold] - others.max()) if len(others) else math.inf
    return Choice(prediction, prediction == gold, margin)


def decide(score: float, threshold: float, gold: int) -> Choice:
    """Say yes (1) to a similarity above a threshold and no (0) to one below; a tie is wrong."""
    prediction = TIE if score == threshold else int(score > threshold)
    distance = score - threshold
    return Choice(prediction, prediction == gold, distance if gold else -distance)


def decide_by_texts(images: Matrix, texts: Matrix, target: int | None, gold: int) -> Choice:
    """Say yes (1) if all images `(K, D)` have the same best text `(V, D)`, and it is `target` where one is given.

    An image with two equally good best texts is a tie, which is wrong. The margin is the smallest lead of a best text,
    negative if the answer is wrong.
    """
    labels, leads = best_texts(images, texts)
    lead = float(leads.min())
    if TIE in labels:
        return Choice(TIE, False, 0.0)
    prediction = int(len(set(labels)) == 1 and target in (None, labels[0]))
    return Choice(prediction, prediction == gold, lead if prediction == gold else -lead)


def count(images: Matrix, texts: Matrix, values: Sequence[float], gold: int) -> Choice:
    """Add up, over the images `(K, D)`, the number whose text `(V, D)` is the best; a tie is wrong."""
    labels, leads = best_texts(images, texts)
    lead = float(leads.min())
    if TIE in labels:
        return Choice(TIE, False, 0.0)
    total = round(math.fsum(values[label] for label in labels))
    return Choice(total, total == gold, lead if total == gold else -lead)


def fit_threshold(scores: Sequence[float], gold: Sequence[int]) -> Threshold:
    """Return the threshold with the highest accuracy on a development part; the middle one of the best.

    Candidates are the midpoints between neighbouring scores, and one below and one above all of them, so no score of
    the development part equals it.

    Args:
        scores: similarities `(N,)` of the development part, in any order.
        gold: 1 for yes, 0 for no `(N,)`.

    Raises:
        ValueError: if yes or no does not occur.
    """
    values, right = np.asarray(scores, np.float64), np.asarray(gold, np.int64)
    if set(right.tolist()) != {0, 1}:
        raise ValueError("a threshold needs questions of both answers")
    steps = np.unique(values)
    candidates = np.concatenate([[steps[0] - 1], (steps[:-1] + steps[1:]) / 2, [steps[-1] + 1]])
    accuracy = np.array([((values > c) == (right == 1)).mean() for c in candidates])
    best = np.flatnonzero(accuracy == accuracy.max())
    chosen = int(best[len(best) // 2])
    return Threshold(float(candidates[chosen]), float(accuracy[chosen]), len(values))


def _rows(matrix: Matrix) -> NDArray[np.float64]:
    values = matrix.detach().cpu().double().numpy() if isinstance(matrix, Tensor) else matrix
    rows = np.asarray(values, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"embeddings of shape {rows.shape}; expected (N, D)")
    if not np.isfinite(rows).all():
        raise ValueError("an embedding is not finite")
    return rows


def _means(rows: Sequence[NDArray[np.floating]] | NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the mean of each row, in whatever order its values stand."""
    return np.array([math.fsum(map(float, row)) / len(row) for row in rows], np.float32)
