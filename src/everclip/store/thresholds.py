"""Carry the cut-offs of a tagger over to a new version: the threshold that keeps each class's old precision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from everclip.contracts import EvalSet
from everclip.errors import ConfigError
from everclip.features.encoder import image_encoder
from everclip.features.pictures import Pictures
from everclip.learner.core import Learner

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Carried:
    """A class's threshold before and after; an image has the tag if its cosine with the name is at least this.

    Attributes:
        name: of the class.
        old, new: thresholds; `new` is `None` if no threshold of the new model reaches the old precision.
        precision: of the old threshold with the old model, and of the new one with the new model.
        recall: likewise.
        images: images of this class that were measured.
        note: why there is no new threshold, or empty.
    """

    name: str
    old: float
    new: float | None
    precision: tuple[float | None, float | None]
    recall: tuple[float | None, float | None]
    images: int
    note: str = ""


def read_thresholds(path: Path) -> dict[str, float]:
    """Read `{"class name": threshold}`.

    Raises:
        ConfigError: if it is no such file; names the entry.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f'--thresholds: {path}: expected JSON {{"class name": threshold}} ({error}).'
        ) from error
    if not isinstance(document, dict) or not document:
        raise ConfigError(
            f'--thresholds: {path}: expected JSON {{"class name": threshold}}, with one class at least.'
        )
    for name, value in document.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
            raise ConfigError(
                f"--thresholds: {path}: {name!r}: expected a cosine in [-1, 1], found {value!r}."
            )
    return {str(name): float(value) for name, value in document.items()}


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return pairs as a dictionary; JSON itself would keep the last of two values in silence."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the class {twice[0]!r} is there twice")
    return dict(pairs)


def carried(name: str, cut: float, old: Array, new: Array, right: NDArray[np.bool_]) -> Carried:
    """Return the lowest threshold of the new model whose precision is at least that of the old one at `cut`.

    Args:
        name: of the class.
        cut: threshold of the old model.
        old, new: `(N,)` cosines of images with the name, for both models.
        right: `(N,)` whether an image is of the class.
    """
    positives = int(right.sum())
    if not positives:
        return Carried(name, cut, None, (None, None), (None, None), 0, "no measured image is of this class")
    precision, recall = _rates(old >= cut, right)
    if precision is None:
        return Carried(
            name, cut, None, (None, None), (recall, None), positives, "no image reached the old threshold"
        )
    order = np.argsort(-new, kind="stable")
    values, hits = new[order], np.cumsum(right[order])
    reached = hits / np.arange(1, len(new) + 1)
    # A threshold takes all images of equal cosine: only the last of each counts.
    last = np.append(values[1:] != values[:-1], True)
    fitting = np.flatnonzero(last & (reached >= precision) & (hits > 0))
    if not len(fitting):
        return Carried(
            name,
            cut,
            None,
            (precision, float(reached[last].max())),
            (recall, None),
            positives,
            "no threshold of the new model is as precise",
        )
    chosen = float(values[fitting[-1]])
    after = _rates(new >= chosen, right)
    return Carried(name, cut, chosen, (precision, after[0]), (recall, after[1]), positives)


def _rates(tagged: NDArray[np.bool_], right: NDArray[np.bool_]) -> tuple[float | None, float | None]:
    """Return precision (`None` without a tagged image) and recall."""
    hits = int((tagged & right).sum())
    return (hits / int(tagged.sum()) if tagged.any() else None, hits / int(right.sum()))


def carry_over(
    thresholds: Mapping[str, float], old: Learner, new: Learner, sets: Sequence[EvalSet]
) -> list[Carried]:
    """Return the new threshold of each class, measured on all images with a class.

    Args:
        thresholds: class name -> cosine.
        old, new: both models.
        sets: images; those without a class name are left out.
    """
    labelled = [s for s in sets if s.data.has("class_name") and len(s.data)]
    names = list(thresholds)
    truth = [str(name) for s in labelled for name in s.data.column("class_name")]
    scores = [_cosines(learner, labelled, names) for learner in (old, new)]
    return [
        carried(
            name,
            thresholds[name],
            scores[0][:, column],
            scores[1][:, column],
            np.array([of == name for of in truth], dtype=np.bool_),
        )
        for column, name in enumerate(names)
    ]


def _cosines(learner: Learner, sets: Sequence[EvalSet], names: Sequence[str]) -> Array:
    """Return the cosines `(N, C)` of images with names."""
    encoder = image_encoder(learner.method, learner.method.encoder_keys())
    images = [learner.features.images(encoder, Pictures.of(s.data))["embedding"] for s in sets]
    if not images:
        return np.zeros((0, len(names)))
    texts = learner.encode(texts=list(names))["texts"]
    cosines: Array = (torch.cat(images).double() @ texts.double().T).cpu().numpy()
    return cosines
