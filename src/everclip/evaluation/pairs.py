"""Score pairs of images with one or two captions: which image does a caption choose, and which caption an image?

The text-to-image answer of a pair with two captions is the score of MMVP-VLM (Tong et al. 2024, arXiv 2401.06209) and
the image score of Winoground (Thrush et al. 2022, arXiv 2204.03162); the other direction is Winoground's text score,
and both its group score. A tie is always wrong. In the published code of MMVP-VLM, a tie chooses the second image.

Similarities are dot products that are summed in float64 and rounded to float32, so that equal vectors have equal ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AMBIGUOUS = 1e-5
"""A choice between similarities that are nearer than this is counted as ambiguous."""


@dataclass(frozen=True)
class PairAnswers:
    """The answers to P pairs.

    Attributes:
        text_to_image: `(P,)` bool: every caption of the pair chooses its image.
        image_to_text: `(P,)` bool: both images choose their captions; false with one caption.
        two: `(P,)` bool: whether the pair has two captions.
        patterns: the pattern of each pair, or `None`.
        ambiguous: number of pairs with a choice that is nearly a tie.
    """

    text_to_image: Tensor
    image_to_text: Tensor
    two: Tensor
    patterns: tuple[str | None, ...]
    ambiguous: int = 0

    def of_pattern(self, pattern: str) -> PairAnswers:
        """Return the answers to the pairs of one pattern."""
        mine = torch.tensor([name == pattern for name in self.patterns], dtype=torch.bool)
        return PairAnswers(
            self.text_to_image[mine],
            self.image_to_text[mine],
            self.two[mine],
            (pattern,) * int(mine.sum()),
        )

    @property
    def pattern_names(self) -> list[str]:
        """The patterns, in alphabetical order: the order of rows changes nothing."""
        return sorted({name for name in self.patterns if name is not None})


def pair_similarities(texts: Tensor, images: Tensor) -> Tensor:
    """Return the similarities `(P, 2, 2)` float32 of texts (axis 1) and images (axis 2), both given as `(P, 2, D)`."""
    # Products and sums element by element: a matrix product may add in another order from pair to pair.
    products = texts.double()[:, :, None] * images.double()[:, None]
    return products.sum(dim=-1).float()


def answer_pairs(
    similarities: Tensor, two: Tensor | None = None, patterns: Sequence[str | None] | None = None
) -> PairAnswers:
    """Answer pairs from the similarities of their texts and images.

    Args:
        similarities: `(P, 2, 2)`, texts x images; the k-th text is true of the k-th image. Any scale.
        two: `(P,)` bool: whether the second text exists; its row is ignored where it does not. Default: always.
        patterns: the pattern of each pair.

    Raises:
        ValueError: for another shape, or a similarity that is not finite.
    """
    if similarities.dim() != 3 or similarities.shape[1:] != (2, 2):
        raise ValueError(f"similarities of shape {tuple(similarities.shape)}; expected (P, 2, 2)")
    count = len(similarities)
    two = torch.ones(count, dtype=torch.bool) if two is None else two.cpu()
    names = (None,) * count if patterns is None else tuple(patterns)
    if len(two) != count or len(names) != count:
        raise ValueError(f"{count} pairs, but {len(two)} numbers of captions and {len(names)} patterns")
    s = similarities.detach().cpu()
    if not bool(torch.isfinite(s).all()):
        raise ValueError("a similarity is not finite")
    texts = torch.stack([s[:, 0, 0] - s[:, 0, 1], s[:, 1, 1] - s[:, 1, 0]], dim=1)
    images = torch.stack([s[:, 0, 0] - s[:, 1, 0], s[:, 1, 1] - s[:, 0, 1]], dim=1)
    to_image = (texts[:, 0] > 0) & ((texts[:, 1] > 0) | ~two)
    to_text = (images > 0).all(dim=1) & two
    near = texts.abs() <= AMBIGUOUS
    ambiguous = near[:, 0] | (two & (near[:, 1] | (images.abs() <= AMBIGUOUS).any(dim=1)))
    return PairAnswers(to_image, to_text, two, names, int(ambiguous.sum()))


def pattern_mean(answers: PairAnswers) -> tuple[float | None, int]:
    """Return the mean over patterns of the share of right text-to-image answers, and the number of patterns."""
    names = answers.pattern_names
    shares = [float(answers.of_pattern(name).text_to_image.double().mean()) for name in names]
    return (sum(shares) / len(shares) if shares else None), len(names)
