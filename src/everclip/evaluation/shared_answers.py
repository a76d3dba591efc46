"""Let classes whose texts have equal tokens share one answer, which is right for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from everclip.contracts import ClassEntry
from everclip.data.sampling.same_texts import TextKeys, first_same_class

TOLERANCE = 1e-5
"""Scores of one text in two rows of a class bank differ at most by this, through rounding."""


@dataclass(frozen=True)
class Answers:
    """Scores with one column per distinct answer.

    Attributes:
        scores: `(N, A)`.
        labels: `(N,)` int64, the right column of each item.
        names: the name of each column.
        classes: `(A,)` int64, the first class of each column.
    """

    scores: torch.Tensor
    labels: torch.Tensor
    names: list[str]
    classes: torch.Tensor


def shared_answers(
    keys_of: TextKeys, entries: Sequence[ClassEntry], scores: torch.Tensor, labels: torch.Tensor
) -> Answers:
    """Merge the columns of classes whose texts have equal tokens.

    The columns stay separate if their scores differ: a method may distinguish such classes by what it learned from
    their images.

    Args:
        keys_of: the token keys of texts.
        entries: the classes, one per column.
        scores: `(N, C)`.
        labels: `(N,)` class indices.
    """
    same = torch.tensor(first_same_class(keys_of, entries), dtype=torch.int64)
    for column in (same != torch.arange(len(same))).nonzero()[:, 0].tolist():
        differs = (scores[:, column] - scores[:, int(same[column])]).abs() > TOLERANCE
        if bool(differs.any()):
            same[column] = column
    kept = torch.unique(same)
    if len(kept) == len(same):
        return Answers(scores, labels, [entry.name for entry in entries], kept)
    names = [entries[int(i)].name for i in kept]
    columns = kept.to(scores.device)
    return Answers(scores[:, columns], torch.searchsorted(kept, same[labels]), names, kept)
