"""The score of guessing on a set of image pairs or of questions about several images.

For pairs it depends on how many of them have two captions, for questions on their number of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ONE, TWO, BOTH = 1 / 2, 1 / 4, 1 / 6
"""Guessing a pair with one caption; with two captions in one direction; in both (two similarities of four on top)."""


def guessed(kind: str, scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the expected score of guessing per metric of a set; empty for a kind that says nothing about it.

    Args:
        kind: the kind of the set.
        scores: metric -> score with its `n` and `value`.
    """
    if kind == "pairs":
        return guessed_pairs(scores)
    score = scores.get("multi_image_guessing") if kind == "multi-image" else None
    return {} if score is None or score.value is None else {"multi_image_accuracy": score.value}


def guessed_pairs(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the expected score of guessing per metric of a set of pairs, as Winoground states it (arXiv 2204.03162).

    Guessing means independent similarities. A model whose choices depend on each other, since it prefers some images
    whatever the caption, strays farther from this than the interval of a share says.

    Args:
        scores: metric -> score with its number of pairs `n` and its `value`; nothing is returned for a metric that is
            not defined, nor for a mean over patterns that mixes pairs with one and with two captions.
    """
    everything = scores["pair_text_to_image"].n if "pair_text_to_image" in scores else 0
    if not everything:
        return {}
    two = scores["pair_image_to_text"].n if "pair_image_to_text" in scores else 0
    found = {"pair_text_to_image": (TWO * two + ONE * (everything - two)) / everything}
    if two:
        found |= {"pair_image_to_text": TWO, "pair_both": BOTH}
    if two in (0, everything):
        found["pair_pattern_mean"] = found["pair_text_to_image"]
    return {name: value for name, value in found.items() if name in scores and scores[name].value is not None}
