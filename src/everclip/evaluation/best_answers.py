"""Return the best answers to single images for the report, and count the images with tied answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from everclip.evaluation import retrieval
from everclip.evaluation.pools import Ranked


class Best(NamedTuple):
    """The three best answers to an image with their scores, whether the first is right, and the true answer's rank."""

    answers: list[tuple[str, float]]
    correct: bool
    rank: int


BestAnswers = dict[int, Best]
"""Position of an image -> the best answers to it."""

TIED = 1e-5
"""Captions are tied if their cosines differ by at most this."""


def best_classes(
    scores: torch.Tensor, names: Sequence[str], labels: torch.Tensor, chosen: Sequence[int]
) -> BestAnswers:
    """Return the three best classes of the chosen images; among equal scores the first.

    Args:
        scores: `(N, A)`, one column per answer.
        names: the names of the answers.
        labels: `(N,)` int64, the column of the true answer.
        chosen: positions of the images.
    """
    result: BestAnswers = {}
    for position in chosen:
        order = torch.argsort(scores[position], descending=True, stable=True)
        answers = [(names[int(i)], round(float(scores[position, i]), 4)) for i in order[:3]]
        rank = int((order == labels[position]).nonzero()) + 1
        result[position] = Best(answers, rank == 1, rank)
    return result


def nearest_captions(
    images: torch.Tensor, ranked: Ranked, identities: Sequence[str], chosen: Sequence[int]
) -> tuple[int, BestAnswers]:
    """Return the number of images whose two nearest captions are tied, and the three nearest captions of chosen images.

    Args:
        images: `(N, D)` unit embeddings of all images of the set.
        ranked: the pool in which they were ranked.
        identities: the identities of the images, in the order of `images`.
        chosen: positions of the images.
    """
    best = retrieval.top_k(images, ranked.gallery, 3)
    tied = best.scores[:, 0] - best.scores[:, 1] <= TIED if best.scores.shape[1] > 1 else torch.zeros(0)
    ranks = retrieval.best_ranks(ranked.image_to_text)
    query = {identity: i for i, identity in enumerate(ranked.images)}
    result: BestAnswers = {}
    for position in chosen:
        pairs = zip(best.indices[position].tolist(), best.scores[position].tolist(), strict=True)
        answers = [(ranked.candidates[i], round(score, 4)) for i, score in pairs]
        rank = int(ranks[query[identities[position]]])
        result[position] = Best(answers, rank == 1, rank)
    return int(tied.sum()), result
