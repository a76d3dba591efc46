"""Losses of CLL-CLIP: from captions to fixed embeddings of a teacher (arXiv 2401.17186, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from everclip.distributed import mean, world
from everclip.methods.losses import contrastive


def masked_mse(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference over the rows of all processes that have a target, and over dimensions.

    Args:
        student: embeddings `(N, D)`, not of unit length.
        target: those of the teacher `(N, D)`; a row of NaN: there is none.

    Returns:
        Scalar of this process's rows, whose mean over the processes is the loss; 0 if no row has a target. All
        processes must call it.
    """
    known = ~target.isnan().any(dim=1, keepdim=True)
    squared = (student - torch.where(known, target, student.detach())).square() * known
    # Not the own number of rows: the mean over processes would weigh rows of a process with few of them more.
    each = mean(known.sum().float()).clamp(min=1 / world())
    return squared.sum() / (each * student.shape[1])


def to_fixed(
    kind: str,
    student: torch.Tensor,
    target: torch.Tensor,
    temperature: torch.Tensor,
    target_key: torch.Tensor | None = None,
    student_key: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return a loss from captions to fixed embeddings.

    Args:
        kind: `mse` (on embeddings as they are), or `contrastive` (symmetric, on unit embeddings, divided by the
            temperature; equal keys mark further positives).
        student, target: `(N, D)`; a row of NaN in `target`: there is none.
        temperature: scalar.
        target_key, student_key: `(N,)` int64; equal keys mark equal targets, and equal captions.
    """
    if kind == "mse":
        return masked_mse(student, target)
    known = ~target.isnan().any(dim=1, keepdim=True)
    # All processes must have equally many rows: one without a target becomes a zero vector, its own only positive.
    fixed = F.normalize(torch.where(known, target, torch.zeros_like(target)), dim=1)
    unit = torch.where(known, F.normalize(student, dim=1), torch.zeros_like(student))
    return contrastive(fixed, unit, 1 / temperature, target_key, student_key)
