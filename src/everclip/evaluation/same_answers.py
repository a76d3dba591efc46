"""Classes that a model reads the same share one answer, which is right for either of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from everclip.contracts import ClassEntry
from everclip.data.sampling.same_texts import TextKeys, first_same_class

TOLERANCE = 1e-5
"""Largest difference between the scores of one text in two places of a bank: rounding."""


@dataclass(frozen=True)
class Answers:
    """Scores with one column per distinct answer.

    Attributes:
        scores: `(N, A)`.
        labels: `(N,)` int64, the right column of each item.
        names: what each column is called.
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

    A method that tells such classes apart all the same, by what it learned of their pictures, keeps their columns.

    Args:
        keys_of: what the model reads of texts.
        entries: the classes, one per column.
        scores: `(N, C)`.
        labels: `(N,)` positions among the classes.
    """
    same = torch.tensor(first_same_class(keys_of, entries), dtype=torch.int64)
    for column in (same != torch.arange(len(same))).nonzero()[:, 0].tolist():
        apart = (scores[:, column] - scores[:, int(same[column])]).abs() > TOLERANCE
        if bool(apart.any()):
            same[column] = column
    kept = torch.unique(same)
    if len(kept) == len(same):
        return Answers(scores, labels, [entry.name for entry in entries], kept)
    names = [entries[int(i)].name for i in kept]
    where = kept.to(scores.device)
    return Answers(scores[:, where], torch.searchsorted(kept, same[labels]), names, kept)
