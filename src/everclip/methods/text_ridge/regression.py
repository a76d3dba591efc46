"""The regression of `text-ridge`: sums over images per text, and the closed-form solution."""

from __future__ import annotations

import torch
from torch import nn

from everclip.methods.rail.base import solve_spd
from everclip.methods.rail.dual import gaussian_kernel

UNCHANGED = 1e-6
"""A text that the regression would move by less stays as it is, to the bit."""

FLOOR = 1e-5
"""Added to the second moment of images, per dimension and relative to its mean: the spare direction is then a smooth
function of the images, and does not depend on roundings."""

QUIET = 0.05
"""A direction is spare if images have at most this component along it, as a root mean square."""

ENOUGH = 2
"""Images per dimension that the estimate of a spare direction needs."""

SAME = 1e-9
"""Means of images whose cosine is closer to 1 belong to the same images."""

CHUNK = 1024
"""Number of texts that are moved together."""


class TextRegression(nn.Module):
    """Corrections of text embeddings, `t + k(t, T) alpha`, that carry learned texts T to the means of their images.

    All state is in buffers, so that a checkpoint between two batches holds everything. The sums do not depend on the
    order of samples or tasks.

    Args:
        width: D of the embeddings.
        texts, anchors, solved: the number of rows of the buffers.
    """

    texts: torch.Tensor
    sums: torch.Tensor
    counts: torch.Tensor
    anchors: torch.Tensor
    support: torch.Tensor
    weights: torch.Tensor
    moment: torch.Tensor
    spare: torch.Tensor

    def __init__(self, width: int, texts: int = 0, anchors: int = 0, solved: int = 0) -> None:
        super().__init__()
        fine = torch.float64
        self.register_buffer("texts", torch.zeros(texts, width))
        self.register_buffer("sums", torch.zeros(texts, width, dtype=fine))
        self.register_buffer("counts", torch.zeros(texts, dtype=fine))
        self.register_buffer("anchors", torch.zeros(anchors, width))
        self.register_buffer("support", torch.zeros(solved, width))
        self.register_buffer("weights", torch.zeros(solved, width, dtype=fine))
        # Sum of x x^T over images; the last row holds their number.
        self.register_buffer("moment", torch.zeros(width + 1, width, dtype=fine))
        self.register_buffer("spare", torch.zeros(width, dtype=fine))

    def shape(self) -> dict[str, int]:
        """Return the sizes that decide the shapes of the buffers, as JSON."""
        return {"width": self.texts.shape[1], "solved": len(self.support)}

    @property
    def used_values(self) -> int:
        """The number of values that the correction of a text uses."""
        return self.support.numel() + self.weights.numel() + self.spare.numel()

    def widen(self, texts: torch.Tensor) -> None:
        """Append texts `(N, D)` without images."""
        self.texts = torch.cat([self.texts, texts.to(self.texts)])
        self.sums = torch.cat([self.sums, self.sums.new_zeros(texts.shape)])
        self.counts = torch.cat([self.counts, self.counts.new_zeros(len(texts))])

    def see(self, images: torch.Tensor) -> None:
        """Add images `(N, D)` to what is known about images in general."""
        x = images.double()
        self.moment[:-1] += x.T @ x
        self.moment[-1, 0] += len(x)

    def add(self, images: torch.Tensor, own: torch.Tensor) -> None:
        """Add images `(N, D)` of the texts that `own` `(N, T)` marks."""
        x, marks = images.double(), own.double()
        self.see(images)
        self.sums += marks.T @ x
        self.counts += marks.sum(dim=0)

    def solve(self, gamma: float, ridge: float, level: float, held: torch.Tensor) -> dict[str, float | None]:
        """Compute corrections from all added images; return figures about them.

        Args:
            gamma, ridge, level: see `TextRidgeSettings`.
            held: which anchors `(A,)` are in force: those that no task has learned.
        """
        learned = self.counts > 0
        texts, counts = self.texts[learned], self.counts[learned]
        means = nn.functional.normalize(self.sums[learned], dim=1)
        agreement = self._agreement(counts, self.sums[learned])
        self.support = torch.cat([texts, self.anchors[held]])
        rival = self._rival_score(self.sums[learned] / counts[:, None], means)
        self.spare = self._spare_direction()
        lengths = (level * rival / expected_score(counts, agreement)).clamp(0.0, 1.0)
        if not bool(self.spare.any()):
            lengths = torch.ones_like(lengths)
        wanted = torch.zeros(self.support.shape, dtype=torch.float64, device=self.support.device)
        wanted[: len(texts)] = lengths[:, None] * means - texts.double()
        rows = self.support.double()
        self.weights = solve_spd(gaussian_kernel(rows, rows, gamma), wanted, ridge)
        return {
            "texts": len(texts),
            "anchors": int(held.sum()),
            "images_agree": agreement,
            "rival_score": round(rival, 4),
            "length": round(float(lengths.mean()), 4) if len(lengths) else None,
        }

    @staticmethod
    def _agreement(counts: torch.Tensor, sums: torch.Tensor) -> float | None:
        """Return the mean cosine of two images of the same text; `None` if no text has two."""
        pairs = float((counts * (counts - 1)).sum())
        if not pairs:
            return None
        # |sum|^2 = n + the sum of cosines over ordered pairs.
        return max(float(((sums**2).sum(dim=1) - counts).sum() / pairs), 1e-3)

    def _rival_score(self, centres: torch.Tensor, means: torch.Tensor) -> float:
        """Return the best score that another text has on the images of a learned one, as a mean over these.

        Args:
            centres: the mean embedding of each learned text's images `(T, D)`.
            means: the same with unit length. Texts with the same images (templates of a class) are no rivals.
        """
        scores = centres @ self.support.double().T
        same = means @ means.T > 1 - SAME
        scores[:, : len(means)] = scores[:, : len(means)].masked_fill(same, -1.0)
        best = scores.max(dim=1).values
        return float(best.mean()) if len(best) and float(best.max()) > -1 else 1.0

    def _spare_direction(self) -> torch.Tensor:
        """Return a unit direction `(D,)` that images hardly use; zeros if none is known.

        A learned text of length below 1 gets the rest of its length in this direction: so embeddings keep unit length,
        and its scores become smaller.
        """
        matrix, count = self.moment[:-1], float(self.moment[-1, 0])
        width = len(matrix)
        nothing = torch.zeros_like(self.spare)
        if count < ENOUGH * width:
            return nothing
        mean = matrix / count
        floor = FLOOR * torch.eye(width, dtype=mean.dtype, device=mean.device) * mean.trace() / width
        start = torch.ones(width, dtype=mean.dtype, device=mean.device)
        direction = torch.linalg.solve(mean + floor, start)
        direction = direction / direction.norm()
        return direction if float((direction @ mean @ direction).sqrt()) <= QUIET else nothing

    def moved(self, texts: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return unit embeddings `(N, D)` after correction, of unit embeddings `(N, D)`."""
        if not len(self.support):
            return texts
        starts = range(0, len(texts), CHUNK)
        parts = [self._moved(texts[i : i + CHUNK], gamma) for i in starts]
        return torch.cat(parts) if parts else texts

    def _moved(self, texts: torch.Tensor, gamma: float) -> torch.Tensor:
        fine = texts.double()
        change = gaussian_kernel(fine, self.support.double(), gamma) @ self.weights
        moved = fine + change
        rest = (1 - (moved**2).sum(dim=1)).clamp(min=0).sqrt()
        whole = nn.functional.normalize(moved + rest[:, None] * self.spare, dim=1)
        return torch.where((change.norm(dim=1) > UNCHANGED)[:, None], whole.to(texts.dtype), texts)


def expected_score(counts: torch.Tensor, agreement: float | None) -> torch.Tensor:
    """Return the expected cosine of a further image with the unit mean of n images, for each n `(T,)`.

    With the mean cosine r of two images of a text, it is `n r / sqrt(n + n (n - 1) r)`; 1 if r is unknown.
    """
    if agreement is None:
        return torch.ones_like(counts)
    scores: torch.Tensor = counts * agreement / (counts + counts * (counts - 1) * agreement).sqrt()
    return scores
