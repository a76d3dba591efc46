"""Fuse zero-shot probabilities with the outputs of a regression that only knows the learned classes."""

from __future__ import annotations

import torch

SMOOTH = 1e-6
"""Outputs below this become a probability near 0; their order is preserved."""


def fuse(
    probabilities: torch.Tensor, outputs: torch.Tensor, learned: torch.Tensor, share: float
) -> torch.Tensor:
    """Return RAIL's fused rows (arXiv 2406.18868).

    If the best zero-shot class of a row was learned, the row is `(1 - share) p + share a`. Otherwise it is `p`, so that
    classes that were never learned lose nothing.

    Args:
        probabilities: `(N, C)`, p: softmax over all classes of the label space.
        outputs: `(N, C)`, a: raw outputs of the regression, 0 for classes that were not learned.
        learned: `(C,)` bool.
        share: the weight of the regression in [0, 1].
    """
    fused = (1 - share) * probabilities + share * outputs
    return torch.where(learned[probabilities.argmax(dim=1)][:, None], fused, probabilities)


def as_cosines(fused: torch.Tensor, cosines: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the cosines whose softmax at `scale` is the fused row: same order, and calibration can be measured.

    Outputs of a regression are not probabilities: negative ones become nearly 0, and rows are divided by their sum.
    Without fusion, the result is the cosines themselves.

    Args:
        fused: `(N, C)` float64.
        cosines: `(N, C)` zero-shot cosines of the same rows; they fix the level.
        scale: the factor on cosines.
    """
    root = (fused**2 + SMOOTH**2).sqrt()
    # Strictly increasing and positive, about max(0, f); the second form does not cancel.
    positive = torch.where(fused > 0, (fused + root) / 2, SMOOTH**2 / (2 * (root - fused)))
    logs = positive.log() - positive.sum(dim=1, keepdim=True).log()
    return (logs + (scale * cosines.double()).logsumexp(dim=1, keepdim=True)) / scale
