"""Metrics of an evaluation set of images with captions.

A function takes `Ranked`, the ranks of the right images and captions in both directions, and `k` if its name contains
`{k}`. If its metric has an interval (`wilson`, `bootstrap`), it returns one value per query `(Q,)`, whose mean is the
score. Otherwise it returns the score and the number of queries behind it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from everclip.metrics import metric

if TYPE_CHECKING:
    from torch import Tensor

    from everclip.evaluation.pools import Ranked
    from everclip.evaluation.retrieval import Ranks

_pairs = partial(metric, kind="retrieval")


@_pairs(
    "text_to_image_r{k}",
    label="Recall@{k}, text to image",
    meaning="Share of captions with one of their images among the first {k}.",
    formula="R@{k} of CLIP papers: mean [best rank <= {k}]",
    interval="wilson",
    pooled=True,
)
def text_to_image_recall(ranked: Ranked, k: int) -> Tensor:
    """Return the hits per distinct caption."""
    from everclip.evaluation import retrieval

    return retrieval.hits_at_k(ranked.text_to_image, k)


@_pairs(
    "image_to_text_r{k}",
    label="Recall@{k}, image to text",
    meaning="Share of images with one of their captions among the first {k}.",
    formula="R@{k} of CLIP papers: mean [best rank <= {k}]",
    interval="wilson",
    pooled=True,
)
def image_to_text_recall(ranked: Ranked, k: int) -> Tensor:
    """Return the hits per distinct image."""
    from everclip.evaluation import retrieval

    return retrieval.hits_at_k(ranked.image_to_text, k)


@_pairs(
    "mean_r{k}",
    label="Recall@{k}, both ways",
    meaning="Mean of Recall@{k} from captions to images and from images to captions.",
    formula="(text_to_image_r{k} + image_to_text_r{k}) / 2, per image",
    interval="bootstrap",
    pooled=True,
)
def mean_recall(ranked: Ranked, k: int) -> Tensor:
    """Return per image the mean of its own hit and of the mean hit of its captions."""
    from everclip.evaluation import pools

    return pools.mean_of_directions(ranked, text_to_image_recall(ranked, k), image_to_text_recall(ranked, k))


def _median(ranks: Ranks) -> tuple[float | None, int]:
    from everclip.evaluation import retrieval

    return retrieval.median_rank(ranks), len(ranks.queries)


def _map(ranks: Ranks) -> tuple[float | None, int]:
    from everclip.evaluation import retrieval

    return retrieval.mean_average_precision(ranks), len(ranks.queries)


_rank = partial(
    _pairs, formula="median of the best ranks, 1 is the first", unit="rank", higher_is_better=False
)
_precision = partial(
    _pairs, formula="mAP: mean over queries of Σ precision at each right answer / their number"
)


@_rank(
    "text_to_image_median_rank",
    label="Median rank, text to image",
    meaning="Median over captions of the rank of their best image.",
)
def text_to_image_median_rank(ranked: Ranked) -> tuple[float | None, int]:
    """Return the median over captions of the best rank."""
    return _median(ranked.text_to_image)


@_precision(
    "text_to_image_map",
    label="Average precision, text to image",
    meaning="How high the images of a caption rank, over all of its images.",
)
def text_to_image_map(ranked: Ranked) -> tuple[float | None, int]:
    """Return the mean average precision over captions."""
    return _map(ranked.text_to_image)


@_rank(
    "image_to_text_median_rank",
    label="Median rank, image to text",
    meaning="Median over images of the rank of their best caption.",
)
def image_to_text_median_rank(ranked: Ranked) -> tuple[float | None, int]:
    """Return the median over images of the best rank."""
    return _median(ranked.image_to_text)


@_precision(
    "image_to_text_map",
    label="Average precision, image to text",
    meaning="How high the captions of an image rank, over all of its captions.",
)
def image_to_text_map(ranked: Ranked) -> tuple[float | None, int]:
    """Return the mean average precision over images."""
    return _map(ranked.image_to_text)
