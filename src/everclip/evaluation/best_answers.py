"""The best answers to single pictures, which the report shows, and how many sets of answers were close calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from everclip.evaluation import retrieval
from everclip.evaluation.pools import Ranked

Answered = dict[int, tuple[list[tuple[str, float]], bool]]
"""Position of a picture -> (its three best answers with their scores, whether the first is right)."""

CLOSE = 1e-5
"""Captions whose cosines differ by no more are equally near."""


def best_classes(
    scores: torch.Tensor, names: Sequence[str], hits: torch.Tensor, chosen: Sequence[int]
) -> Answered:
    """Return the three best classes of chosen pictures; of equal scores the first.

    Args:
        scores: `(N, A)`, one column per answer.
        names: of the answers.
        hits: `(N,)` bool, whether the best answer is right.
        chosen: positions of the pictures.
    """
    found: Answered = {}
    for position in chosen:
        best = torch.argsort(scores[position], descending=True, stable=True)[:3]
        answers = [(names[int(i)], round(float(scores[position, i]), 4)) for i in best]
        found[position] = (answers, bool(hits[position]))
    return found


def nearest_captions(
    images: torch.Tensor, ranked: Ranked, identities: Sequence[str], chosen: Sequence[int]
) -> tuple[int, Answered]:
    """Return for how many pictures two captions are equally near, and the three nearest captions of chosen ones.

    Args:
        images: `(N, D)` unit embeddings of all pictures of the set.
        ranked: the pool that they were ranked in.
        identities: of the pictures, in the order of `images`.
        chosen: positions of the pictures.
    """
    best = retrieval.top_k(images, ranked.gallery, 3)
    close = best.scores[:, 0] - best.scores[:, 1] <= CLOSE if best.scores.shape[1] > 1 else torch.zeros(0)
    hits = retrieval.hits_at_k(ranked.image_to_text, 1)
    query = {identity: i for i, identity in enumerate(ranked.images)}
    found: Answered = {}
    for position in chosen:
        pairs = zip(best.indices[position].tolist(), best.scores[position].tolist(), strict=True)
        answers = [(ranked.candidates[i], round(score, 4)) for i, score in pairs]
        found[position] = (answers, bool(hits[query[identities[position]]]))
    return int(close.sum()), found
