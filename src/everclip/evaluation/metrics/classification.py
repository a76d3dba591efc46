"""Metrics of an evaluation set with classes.

A function takes `Asked`: the scores of the distinct answers and which of them are right. With an interval (`wilson`,
`bootstrap`) it returns one value per item `(N,)`, whose mean is the score; with none, the score and how many items or
classes are behind it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from everclip.metrics import metric

if TYPE_CHECKING:
    from torch import Tensor

    from everclip.evaluation.classification import Asked

_classes = partial(metric, kind="classification")
_hits = partial(_classes, interval="wilson", pooled=True)


@_hits(
    "accuracy",
    label="Accuracy",
    meaning="Share of images whose best answer is right.",
    formula="top-1: mean [argmax_c s(x,c) = y]",
)
def accuracy(asked: Asked) -> Tensor:
    """Hits of the best answer."""
    return asked.right


@_hits(
    "top5",
    label="Top 5",
    meaning="Share of images whose right answer is among the five best.",
    formula="top-5: mean [rank of y <= 5]",
)
def top5(asked: Asked) -> Tensor:
    """Hits of the five best answers."""
    from everclip.evaluation.classification import top_k_hits

    return top_k_hits(asked.scores, asked.labels, 5)


@_classes(
    "mean_class_accuracy",
    label="Mean class accuracy",
    meaning="Mean over the classes of each class's accuracy: a rare class counts as much as a frequent one.",
    formula="mean_c mean_{y=c} [argmax = y]",
)
def mean_class_accuracy(asked: Asked) -> tuple[float | None, int]:
    """Mean over the classes that have items."""
    given = [value for value in asked.per_class if value is not None]
    return (sum(given) / len(given) if given else None), len(given)


@_classes(
    "ece",
    label="Calibration error",
    meaning="How far the model's confidence lies from its accuracy, on average.",
    formula="ECE over 15 bins: Σ_b n_b/N |accuracy_b − confidence_b|",
    higher_is_better=False,
)
def ece(asked: Asked) -> tuple[float | None, int]:
    """Guo et al. 2017 (arXiv 1706.04599), of the softmax at the model's own logit scale."""
    from everclip.evaluation.classification import expected_calibration_error

    return expected_calibration_error(asked.probabilities, asked.labels), len(asked.labels)
