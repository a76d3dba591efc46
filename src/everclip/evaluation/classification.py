"""Classification from scores: predictions with stated ties, hits, calibration, template ensembles.

Everything is computed per item, so an evaluation set may come in chunks of any size. Accuracies are fractions in
[0, 1], or `None` without items. Ties go to the lowest class index.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Predictions:
    """The predictions for an evaluation set with classes. Its metrics are computed from them.

    Attributes:
        scores: `(N, A)`, one column per distinct answer.
        labels: `(N,)` int64, the right column of each item.
        truth: `(N,)` int64, the right class of each item; several classes may share an answer.
        classes: the number of classes.
        scale: the factor of the scores before a softmax.
    """

    scores: Tensor
    labels: Tensor
    truth: Tensor
    classes: int
    scale: float

    @cached_property
    def best(self) -> Tensor:
        """`(N,)`: the best answer of each item."""
        return classify(self.scores)

    @cached_property
    def right(self) -> Tensor:
        """`(N,)` bool: whether the best answer is right."""
        return self.best == self.labels

    @cached_property
    def per_class(self) -> list[float | None]:
        """The accuracy of each class; `None` for a class without items."""
        return per_class_accuracy(torch.where(self.right, self.truth, -1), self.truth, self.classes)

    @cached_property
    def probabilities(self) -> Tensor:
        """`(N, A)`: the softmax of the scores; rows sum to 1."""
        return torch.softmax(self.scale * self.scores.double(), dim=1)


def classify(scores: Tensor) -> Tensor:
    """Return the best class of every item; among equal scores the lowest class index.

    Args:
        scores: `(N, C)`, C >= 1. `-inf` marks a class that is not allowed.

    Returns:
        `(N,)` int64.

    Raises:
        ValueError: if the shape is not `(N, C)` with C >= 1, or an item has a NaN score (which argmax would choose).
    """
    _check_scores(scores)
    return scores.argmax(dim=1)


def top_k_hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return whether the label is among the k best classes, with the tie rule of `classify`.

    With `k > C`, every item is a hit.

    Args:
        scores: `(N, C)`.
        labels: `(N,)` class indices.
        k: at least 1.

    Returns:
        `(N,)` bool.

    Raises:
        ValueError: if `k < 1`, a label is outside `0..C-1`, a score is NaN, or shapes do not match.
    """
    if k < 1:
        raise ValueError(f"k must be positive, it is {k}")
    _check_scores(scores)
    _check_labels(scores[:, 0], labels, classes=scores.shape[1])
    own = scores.gather(1, labels[:, None])
    index = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores > own) | ((scores == own) & (index < labels[:, None]))
    return ahead.sum(dim=1) < k


def per_class_accuracy(predictions: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """Return the accuracy of each class; `None` for a class without items.

    Args:
        predictions: `(N,)` class indices.
        labels: `(N,)` class indices.
        classes: C.

    Raises:
        ValueError: if the shapes differ, or a label is outside `0..C-1`.
    """
    _check_labels(predictions, labels, classes)
    counts = torch.bincount(labels, minlength=classes).tolist()
    right = torch.bincount(labels[predictions == labels], minlength=classes).tolist()
    return [hits / count if count else None for hits, count in zip(right, counts, strict=True)]


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy over equal bins `(lo, hi]` of the top probability (Guo et al. 2017).

    Attributes:
        counts: `(B,)` int64, the items of each bin.
        right: `(B,)` float64, how many of them are right.
        confidence: `(B,)` float64, the sum of their top probabilities.
    """

    counts: Tensor
    right: Tensor
    confidence: Tensor

    @property
    def error(self) -> float | None:
        """`sum_b n_b / N |accuracy_b - confidence_b|` (eq. 3); `None` without items."""
        n = int(self.counts.sum())
        return float((self.right - self.confidence).abs().sum() / n) if n else None


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Return confidence against accuracy, over `bins` equal bins of the top probability.

    Args:
        probabilities: `(N, C)` rows that sum to 1.
        labels: `(N,)`.
        bins: number of bins.

    Raises:
        ValueError: if rows are not probabilities (such as logits), or shapes or labels do not match.
    """
    _check_scores(probabilities)
    _check_labels(probabilities[:, 0], labels, classes=probabilities.shape[1])
    if bins < 1:
        raise ValueError(f"bins must be positive, it is {bins}")
    values = probabilities.double()
    if bool((values < 0).any()) or bool(((values.sum(dim=1) - 1).abs() > 1e-2).any()):
        raise ValueError("expected calibration error needs probabilities, whose rows sum to 1")
    if not len(labels):
        empty = torch.zeros(bins, dtype=torch.float64)
        return Reliability(empty.long(), empty, empty)
    predictions = classify(probabilities)
    confidence = values.gather(1, predictions[:, None])[:, 0]
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=values.device)[1:-1]
    # On the CPU, because sums over indices have no fixed order on a GPU.
    bucket = torch.bucketize(confidence, edges).cpu()
    right = (predictions == labels).double().cpu()
    return Reliability(
        torch.bincount(bucket, minlength=bins),
        torch.bincount(bucket, weights=right, minlength=bins),
        torch.bincount(bucket, weights=confidence.cpu(), minlength=bins),
    )


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float | None:
    """Return the `Reliability.error` of probabilities `(N, C)`; see `reliability`.

    Report the logit scale with it, because fine-tuning changes the scale.
    """
    return reliability(probabilities, labels, bins).error


def ambiguous(cosines: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Mark the items whose two best cosines differ by at most `tolerance` in fp32: rounding decides their answer.

    They are counted separately, and the check that predictions do not depend on the batch skips them. With one class,
    no item is ambiguous.

    Args:
        cosines: `(N, C)` cosines, before the logit scale; `-inf` marks a class that is not allowed.
        tolerance: the largest difference that counts as a tie.

    Returns:
        `(N,)` bool.

    Raises:
        ValueError: if a score is above 1 (such as a scaled logit) or NaN, or the shape is not `(N, C)`.
    """
    _check_scores(cosines)
    values = cosines.float()
    if bool((values > 1.01).any()):
        raise ValueError("a cosine is above 1: pass cosines, not logits; the tolerance is one of cosines")
    if values.shape[1] == 1:
        return torch.zeros(len(values), dtype=torch.bool, device=values.device)
    best = values.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]) <= tolerance


def ensemble_bank(template_features: Tensor) -> Tensor:
    """Return CLIP's template ensemble: the normalised mean of the normalised rows (arXiv 2103.00020).

    It is differentiable and needs no host synchronisation, so a training step may use it. Values are therefore not
    checked: templates that cancel exactly give a zero vector.

    Args:
        template_features: `(..., T, D)`, one row of any norm per template of a class.

    Returns:
        `(..., D)` unit vectors.

    Raises:
        ValueError: if there are no templates.
    """
    if template_features.ndim < 2 or template_features.shape[-2] == 0:
        raise ValueError(f"a class needs (T, D) features with T >= 1, got {tuple(template_features.shape)}")
    return functional.normalize(functional.normalize(template_features, dim=-1).mean(dim=-2), dim=-1)


def ensemble_banks(template_features: Iterable[Tensor]) -> Tensor:
    """Return the `ensemble_bank` of every class; classes may have different numbers of templates.

    Args:
        template_features: C tensors `(T_c, D)`.

    Returns:
        `(C, D)` unit vectors.

    Raises:
        ValueError: if there are no classes, or a class has no templates.
    """
    parts = list(template_features)
    if not parts:
        raise ValueError("a bank needs at least one class")
    if all(len(part) == len(parts[0]) for part in parts):
        return ensemble_bank(torch.stack(parts))  # one call for thousands of classes
    return torch.stack([ensemble_bank(part) for part in parts])


def _check_scores(scores: Tensor) -> None:
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"scores must be (N, C) with C >= 1, got {tuple(scores.shape)}")
    bad = scores.isnan().any(dim=1)
    if bool(bad.any()):
        raise ValueError(f"item {int(bad.int().argmax())} has a NaN score")


def _check_labels(predictions: Tensor, labels: Tensor, classes: int | None = None) -> None:
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(
            f"expected predictions and labels of shape (N,), got {tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
    if classes is not None and bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"a label is outside 0..{classes - 1}")
