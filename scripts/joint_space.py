"""The joint space of builtin:photo: images as a classifier of ImageNet sees them, texts by the classes they resemble.

An image becomes its feature before the classifier, whitened by the covariance of features within a class, in the main
directions of the classifier's rows. A text becomes the mean of the classes' places in this space, weighted by how like
their names it is to a sentence encoder (a softmax over cosines). `scripts/photo_targets.py` calls this module.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from teachers import Features
from whitening import class_means, unit, whitening

SHRINKAGE = 1.0
"""Share of the mean variance that is added to the covariance within a class."""

TEMPERATURE = 0.1
"""Of the softmax over the names' cosines to a text."""


@dataclasses.dataclass(frozen=True)
class JointSpace:
    """Maps features of images and embeddings of texts to unit vectors of one space.

    Attributes:
        centre, directions: `(F,)` and `(F, D)`: from features of images.
        read_centre: `(E,)`: what is subtracted from embeddings of texts.
        read: unit embeddings of the known names, centred, `(A, E)`.
        bank: place of each known name in the joint space, of unit length, `(A, D)`.
    """

    centre: Features
    directions: Features
    read_centre: Features
    read: Features
    bank: Features

    def of_images(self, features: Features) -> Features:
        """Return the unit vectors `(N, D)` of features `(N, F)`."""
        return unit((features - self.centre) @ self.directions)

    def of_texts(self, embeddings: Features) -> Features:
        """Return the unit vectors `(N, D)` of a sentence encoder's embeddings `(N, E)`."""
        return unit(attention(unit(embeddings - self.read_centre), self.read, TEMPERATURE) @ self.bank)


def attention(queries: Features, keys: Features, temperature: float) -> Features:
    """Return the softmax over keys of `queries @ keys.T / temperature`, `(N, A)`."""
    scores = queries @ keys.T / temperature
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def centred(rows: Features) -> Features:
    """Return rows of length 1 after their mean is subtracted."""
    return unit(rows - rows.mean(axis=0))


def make_space(
    classifier: Features,
    read: Features,
    features: Features,
    labels: npt.NDArray[np.int64],
    read_labels: Features,
    width: int,
) -> JointSpace:
    """Make the space from a classifier and labelled images.

    Args:
        classifier: one row per class of the classifier `(C, F)`.
        read: embeddings of the classes' names `(C, E)`.
        features: of the labelled images `(N, F)`.
        labels: of these, `0 <= label < L`; -1 for an image without a label, which is not used.
        read_labels: embeddings of the labels' names `(L, E)`.
        width: D.

    Returns:
        The space; its bank holds the classifier's classes, then the labels.

    Raises:
        ValueError: If a label has no image.
    """
    known = labels >= 0
    count = len(read_labels)
    missing = sorted(set(range(count)) - set(labels[known].tolist()))
    if missing:
        raise ValueError(f"labels: found no image of {missing[:5]}")
    means = class_means(features[known], labels[known], count)
    centre = np.asarray(means.mean(axis=0), dtype=np.float32)
    whiten, colour = whitening(features[known] - means[labels[known]], SHRINKAGE)
    # A row w of the classifier scores w.f = (colour w).(whiten f): the class lies along `colour w`.
    rows = unit(centred(classifier) @ colour)
    _, _, main = np.linalg.svd(rows, full_matrices=False)
    directions = np.asarray(whiten @ main[:width].T, dtype=np.float32)
    seen = unit((features[known] - centre) @ directions)
    bank = np.concatenate([unit(rows @ main[:width].T), unit(class_means(seen, labels[known], count))])
    middle = read.mean(axis=0)
    names = np.concatenate([read, read_labels])
    return JointSpace(centre, directions, middle, unit(names - middle), bank)


def named(images: Features, texts: Features, truth: npt.NDArray[np.int64]) -> float:
    """Return the share of images whose nearest text is their own."""
    return float(((images @ texts.T).argmax(axis=1) == truth).mean())
