"""Metrics of an evaluation set of image pairs.

A function takes `PairAnswers`: whether the captions of each pair choose their images, and the images their captions.
If its metric has an interval, it returns one value per pair `(P,)`, whose mean is the score. Otherwise it returns the
score and the number of patterns behind it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from everclip.metrics import metric

if TYPE_CHECKING:
    from torch import Tensor

    from everclip.evaluation.pairs import PairAnswers

_pairs = partial(metric, kind="pairs")
_hits = partial(_pairs, interval="wilson", pooled=True)


@_hits(
    "pair_text_to_image",
    label="Pairs, text to image",
    meaning="Share of pairs whose captions each choose their own image of the two; a tie is wrong.",
    formula="MMVP-VLM, Winoground image score: mean [s(t1,i1) > s(t1,i2) and s(t2,i2) > s(t2,i1)]",
)
def pair_text_to_image(answers: PairAnswers) -> Tensor:
    """Return the hits per pair."""
    return answers.text_to_image


@_hits(
    "pair_image_to_text",
    label="Pairs, image to text",
    meaning="Share of pairs with two captions whose images each choose their own caption; a tie is wrong.",
    formula="Winoground text score: mean [s(t1,i1) > s(t2,i1) and s(t2,i2) > s(t1,i2)]",
)
def pair_image_to_text(answers: PairAnswers) -> Tensor:
    """Return the hits per pair with two captions."""
    return answers.image_to_text[answers.two]


@_hits(
    "pair_both",
    label="Pairs, both ways",
    meaning="Share of pairs with two captions that are right in both directions.",
    formula="Winoground group score: mean [text to image and image to text are right]",
)
def pair_both(answers: PairAnswers) -> Tensor:
    """Return the hits per pair with two captions."""
    return (answers.text_to_image & answers.image_to_text)[answers.two]


@_pairs(
    "pair_pattern_mean",
    label="Pairs, mean over patterns",
    meaning="Mean over the patterns of each pattern's share of right pairs, text to image.",
    formula="MMVP-VLM average: mean_p mean_{pattern p} [text to image is right]",
)
def pair_pattern_mean(answers: PairAnswers) -> tuple[float | None, int]:
    """Return the mean over the patterns, and their number."""
    from everclip.evaluation.pairs import pattern_mean

    return pattern_mean(answers)
