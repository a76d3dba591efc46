"""Metrics of an evaluation set with classes.

A function takes `Predictions`: the scores of the distinct answers, and which answer is right. If its metric has an
interval (`wilson`, `bootstrap`), it returns one value per item `(N,)`, whose mean is the score. Otherwise it returns
the score and the number of items or classes behind it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from everclip.metrics import metric

if TYPE_CHECKING:
    from torch import Tensor

    from everclip.evaluation.classification import Predictions

_classes = partial(metric, kind="classification")
_hits = partial(_classes, interval="wilson", pooled=True)


@_hits(
    "accuracy",
    label="Accuracy",
    meaning="Share of images with a right best answer.",
    formula="top-1: mean [argmax_c s(x,c) = y]",
)
def accuracy(predictions: Predictions) -> Tensor:
    """Return the hits of the best answer."""
    return predictions.right


@_hits(
    "top5",
    label="Top 5",
    meaning="Share of images with the right answer among the five best.",
    formula="top-5: mean [rank of y <= 5]",
)
def top5(predictions: Predictions) -> Tensor:
    """Return the hits among the five best answers."""
    from everclip.evaluation.classification import top_k_hits

    return top_k_hits(predictions.scores, predictions.labels, 5)


@_classes(
    "mean_class_accuracy",
    label="Mean class accuracy",
    meaning="Mean over the classes of each class's accuracy: a rare class counts as much as a frequent one.",
    formula="mean_c mean_{y=c} [argmax = y]",
)
def mean_class_accuracy(predictions: Predictions) -> tuple[float | None, int]:
    """Return the mean over the classes with items, and their number."""
    accuracies = [value for value in predictions.per_class if value is not None]
    return (sum(accuracies) / len(accuracies) if accuracies else None), len(accuracies)


@_classes(
    "ece",
    label="Calibration error",
    meaning="Mean distance between the model's confidence and its accuracy.",
    formula="ECE over 15 bins: Σ_b n_b/N |accuracy_b − confidence_b|",
    higher_is_better=False,
)
def ece(predictions: Predictions) -> tuple[float | None, int]:
    """Return the ECE of the softmax at the model's own logit scale (Guo et al. 2017, arXiv 1706.04599)."""
    from everclip.evaluation.classification import expected_calibration_error

    return expected_calibration_error(predictions.probabilities, predictions.labels), len(predictions.labels)
