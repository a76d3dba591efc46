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

LEAST = 1e-3
"""The smallest expected score of further images; a smaller one has no meaning."""

CHUNK = 1024
"""Number of texts that are moved, or compared with all others, together."""

FORMAT = 2
"""Of the buffers; format 1 lacks `shared_sums`."""


class TextRegression(nn.Module):
    """Corrections of text embeddings, `t + k(t, T) alpha`, that carry learned texts T to their images.

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
    shares: torch.Tensor
    shared_sums: torch.Tensor
    own_moment: torch.Tensor
    moment: torch.Tensor
    spare: torch.Tensor

    def __init__(self, width: int, texts: int = 0, anchors: int = 0, solved: int = 0) -> None:
        super().__init__()
        fine = torch.float64
        self.register_buffer("texts", torch.zeros(texts, width))
        self.register_buffer("sums", torch.zeros(texts, width, dtype=fine))
        self.register_buffer("counts", torch.zeros(texts, dtype=fine))
        # A sample of several texts (templates of a class) counts once: each of them has a share of it.
        self.register_buffer("shares", torch.zeros(texts, dtype=fine))
        self.register_buffer("shared_sums", torch.zeros(texts, width, dtype=fine))
        self.register_buffer("anchors", torch.zeros(anchors, width))
        self.register_buffer("support", torch.zeros(solved, width))
        self.register_buffer("weights", torch.zeros(solved, width, dtype=fine))
        self.register_buffer("own_moment", torch.zeros(width, width, dtype=fine))
        # Sum of x x^T over all samples, also of no text; the last row holds the number of images.
        self.register_buffer("moment", torch.zeros(width + 1, width, dtype=fine))
        self.register_buffer("spare", torch.zeros(width, dtype=fine))

    def shape(self) -> dict[str, int]:
        """Return the sizes that decide the shapes of the buffers, as JSON."""
        return {"width": self.texts.shape[1], "solved": len(self.support), "format": FORMAT}

    @property
    def used_values(self) -> int:
        """The number of values that the correction of a text uses."""
        return self.support.numel() + self.weights.numel() + self.spare.numel()

    @property
    def seen(self) -> int:
        """The number of images seen so far, also of no text."""
        return int(self.moment[-1, 0])

    @property
    def needed(self) -> int:
        """The number of images that the estimate of a spare direction needs."""
        return ENOUGH * self.texts.shape[1]

    def widen(self, texts: torch.Tensor) -> None:
        """Append texts `(N, D)` without images."""
        self.texts = torch.cat([self.texts, texts.to(self.texts)])
        self.sums, self.shared_sums = (
            torch.cat([old, old.new_zeros(texts.shape)]) for old in (self.sums, self.shared_sums)
        )
        self.counts, self.shares = (
            torch.cat([old, old.new_zeros(len(texts))]) for old in (self.counts, self.shares)
        )

    def see(self, images: torch.Tensor, repeats: int = 0) -> None:
        """Add images `(N, D)` to what is known about images in general.

        Args:
            images: of samples.
            repeats: how many of them show the image of another sample (further captions of it).
        """
        x = images.double()
        self.moment[:-1] += x.T @ x
        self.moment[-1, 0] += len(x) - repeats

    def add(self, images: torch.Tensor, own: torch.Tensor) -> None:
        """Add images `(N, D)` of the texts that `own` `(N, T)` marks."""
        present = own.any(dim=0).nonzero()[:, 0]  # a batch has only a few of all texts
        x, marks = images.double(), own[:, present].double()
        parts = marks / marks.sum(dim=1, keepdim=True).clamp(min=1)
        self.see(images)
        self.own_moment += x.T @ x
        self.sums[present] += marks.T @ x
        self.shared_sums[present] += parts.T @ x
        self.counts[present] += marks.sum(dim=0)
        self.shares[present] += parts.sum(dim=0)

    def solve(
        self, gamma: float, ridge: float, level: float, shrinkage: float, held: torch.Tensor
    ) -> dict[str, float | None]:
        """Compute corrections from all added images; return figures about them.

        Nothing moves (`length` is `None`) if the best scores of other texts are not positive: the level is a share of
        them, and there is none.

        Args:
            gamma, ridge, level, shrinkage: see `TextRidgeSettings`.
            held: which anchors `(A,)` are in force: those that no task has learned.
        """
        learned = self.counts > 0
        if not bool(learned.any()):  # no image yet: nothing moves
            return {
                "texts": 0,
                "anchors": int(held.sum()),
                "own_score": None,
                "rival_score": None,
                "length": None,
            }
        texts, counts = self.texts[learned], self.counts[learned]
        means = self.sums[learned] / counts[:, None]
        spread = self._spread_within(learned)
        directions, own = directions_of(means, counts, spread, shrinkage)
        support = torch.cat([texts, self.anchors[held]])
        rows = support.double()
        rival = _rival_score(means, rows)
        spare = self._spare_direction()
        if rival <= 0 and bool(spare.any()):  # a share of it would point texts away from their images
            self.support, self.weights, self.spare = support[:0], rows[:0], spare
            return {**_figures(len(texts), held, own, rival), "length": None}
        length = min(1.0, level * rival / own) if bool(spare.any()) else 1.0
        wanted = torch.zeros_like(rows)
        wanted[: len(texts)] = length * directions - texts.double()
        weights = solve_spd(gaussian_kernel(rows, rows, gamma), wanted, ridge)
        self.support, self.weights, self.spare = support, weights, spare  # together: solving may fail
        return {**_figures(len(texts), held, own, rival), "length": round(length, 4)}

    def _spread_within(self, learned: torch.Tensor) -> torch.Tensor | None:
        """Return the covariance of images around the mean of their text `(D, D)`.

        `None` if no text has two images that differ.
        """
        counts, shares = self.counts[learned], self.shares[learned]
        free = float((shares * (counts - 1) / counts).sum())
        if free < SAME:
            return None
        means = self.sums[learned] / counts[:, None]
        # Around a mean that is not weighted by the shares; they differ if a class returned with other templates.
        crossed = self.shared_sums[learned].T @ means
        between = crossed + crossed.T - (means * shares[:, None]).T @ means
        spread = (self.own_moment - between) / free
        return None if float(spread.trace()) < SAME else spread  # equal images, except for rounding

    def _spare_direction(self) -> torch.Tensor:
        """Return a unit direction `(D,)` that images hardly use; zeros if none is known.

        A learned text of length below 1 gets the rest of its length in this direction: so embeddings keep unit length,
        and its scores become smaller.
        """
        matrix, count = self.moment[:-1], self.seen
        width = len(matrix)
        nothing = torch.zeros_like(self.spare)
        if count < self.needed:
            return nothing
        mean = matrix / matrix.trace()  # embeddings have unit length
        floor = FLOOR * torch.eye(width, dtype=mean.dtype, device=mean.device) * mean.trace() / width
        start = torch.ones(width, dtype=mean.dtype, device=mean.device)
        direction = torch.linalg.solve(mean + floor, start)
        direction = direction / direction.norm()
        return direction if float((direction @ mean @ direction).sqrt()) <= QUIET else nothing

    def complete(self) -> None:
        """Fill in the state that checkpoints did not hold at first: `shared_sums`.

        Exact, unless a class had returned with other templates.
        """
        shared = self.sums * (self.shares / self.counts.clamp(min=1))[:, None]
        self.register_buffer("shared_sums", shared)

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


def _rival_score(means: torch.Tensor, support: torch.Tensor) -> float:
    """Return the best score that another text has on the images of a learned one, as a mean over these.

    Args:
        means: the mean embedding of each learned text's images `(T, D)`. Texts with the same images (templates of a
            class) are no rivals.
        support: texts `(S, D)`, the learned ones first.
    """
    units, best = nn.functional.normalize(means, dim=1), []
    for start in range(0, len(means), CHUNK):  # for all texts at once, this would be as large as the kernel
        part = slice(start, start + CHUNK)
        scores = means[part] @ support.T
        scores[:, : len(means)].masked_fill_(units[part] @ units.T > 1 - SAME, -1.0)
        best.append(scores.max(dim=1).values)
    found = torch.cat(best)
    return float(found.mean()) if float(found.max()) > -1 else 1.0


def _figures(texts: int, held: torch.Tensor, own: float, rival: float) -> dict[str, float | None]:
    return {
        "texts": texts,
        "anchors": int(held.sum()),
        "own_score": round(own, 4),
        "rival_score": round(rival, 4),
    }


def directions_of(
    means: torch.Tensor, counts: torch.Tensor, spread: torch.Tensor | None, shrinkage: float
) -> tuple[torch.Tensor, float]:
    """Return where texts shall point `(T, D)`, of unit length, and the score that further images have there.

    The direction is that of a linear discriminant analysis, `P m`, with `P` the inverse of the shrunk covariance W
    within a text. A further image of the text scores `(m' P m - tr(P W) / n) / |P m|`, averaged over the texts: the
    mean m of n images is too close to these images by its own error. Without W, P is the identity.

    Args:
        means: mean embedding of each text's images `(T, D)`.
        counts: their numbers n `(T,)`.
        spread: W `(D, D)`; `None` if unknown.
        shrinkage: the share of the mean variance, times the identity, in the shrunk covariance.
    """
    width = means.shape[1]
    identity = torch.eye(width, dtype=means.dtype, device=means.device)
    if spread is None:
        precision, noise = identity, 0.0
    else:
        mixed = (1 - shrinkage) * spread + shrinkage * spread.trace() / width * identity
        precision = torch.linalg.inv(mixed)
        noise = float((precision * spread).sum())
    pointed = means @ precision
    scores = ((means * pointed).sum(dim=1) - noise / counts) / pointed.norm(dim=1)
    return nn.functional.normalize(pointed, dim=1), max(float(scores.mean()), LEAST)
