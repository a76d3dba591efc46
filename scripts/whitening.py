"""Whitening of features within a class; both built-in models make their joint space with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from teachers import Features


def unit(rows: npt.NDArray[Any]) -> Features:
    """Return rows of length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


def class_means(rows: npt.NDArray[Any], labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[Any]:
    """Return the mean row of each class `(count, F)`."""
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, labels, rows)
    return np.asarray(sums / np.bincount(labels, minlength=count)[:, None])


def whitening(rest: npt.NDArray[Any], shrinkage: float) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the symmetric root of the inverse covariance of rows with mean zero, and its inverse, `(F, F)` each.

    Args:
        rest: the rows, each less the mean of its class.
        shrinkage: share of the mean variance that is added to the covariance, times the identity.
    """
    covariance = rest.T @ rest / len(rest)
    covariance += shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    roots = np.sqrt(values)
    return np.asarray((vectors / roots) @ vectors.T), np.asarray((vectors * roots) @ vectors.T)
