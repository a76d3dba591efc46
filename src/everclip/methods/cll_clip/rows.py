"""Counts and factors of token rows (TEIR; Yang et al., CLL-CLIP, arXiv 2401.17186, section 3.3)."""

from __future__ import annotations

import math

import torch

FIXED_DEVIATION = 0.02
"""Standard deviation of new rows without TEIR."""


def new_counts(counts: torch.Tensor, more: int, first: bool) -> torch.Tensor:
    """Return the counts of a table that grows.

    A new token counts as one use, so that its first language has the factor 1. A token of the pristine model has been
    used once before the first language, in pre-training.

    Args:
        counts: uses of the old tokens `(V,)`.
        more: the number of new tokens.
        first: whether the table grows for the first time.
    """
    old = counts + 1 if first else counts
    return torch.cat([old, torch.ones(more, dtype=counts.dtype, device=counts.device)])


def factors(kind: str, used: torch.Tensor, counts: torch.Tensor, k: int = 4) -> torch.Tensor:
    """Return the factor of each row `(V,)`, 0 for those that a task does not use.

    Args:
        kind: see `CllClipSettings.factor`.
        used: whether the task uses a token `(V,)` bool.
        counts: how many languages used it before, see `new_counts` `(V,)`.
        k: of `fixed` and `addend`.
    """
    mask = used.to(counts.dtype)
    unique = mask * (counts == 1)
    if kind == "used":
        return mask
    if kind == "unique":
        return unique
    if kind == "fixed":
        return torch.where(counts > 1, mask / k, mask)
    if kind == "addend":
        return torch.where(counts > 1, mask / (counts + k), mask)
    scale = mask / counts
    if kind == "reciprocal" or not bool(scale.sum() > 0):
        return scale
    raised = float(mask.sum() / scale.sum())
    if kind == "rescaled-log2":
        raised = 1.0 if raised < 2 else math.log2(raised)
    return torch.where(unique > 0, scale * raised, scale)


def new_rows(table: torch.Tensor, count: int, init: str | float, draw: torch.Generator) -> torch.Tensor:
    """Return initial values of new rows `(count, W)`.

    Args:
        table: the present table `(V, W)`.
        count: the number of new rows.
        init: `teir`: normal with the mean and unbiased deviation over all entries of the table; `fixed`: N(0, 0.02^2);
            a number: its own deviation.
        draw: of this language, on the CPU.
    """
    values = torch.randn(count, table.shape[1], generator=draw)
    if init != "teir":
        return (FIXED_DEVIATION if isinstance(init, str) else init) * values
    entries = table.detach().double()
    return (float(entries.std()) * values.double() + float(entries.mean())).float()
