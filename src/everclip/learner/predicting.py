"""Predict with a learner: from a user's images and texts to embeddings and class names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from everclip.contracts import ClassEntry, Features, LabelSpace
from everclip.errors import ConfigError
from everclip.features.encoding import encode_images, encode_prompts, joined, measuring
from everclip.learner.inputs import ImageInput, ImageInputs, TextInputs, as_texts, each_image, open_image
from everclip.methods.base import Method
from everclip.templates import GivenTemplates, templates_of

__all__ = ["ImageInput", "ImageInputs", "TextInputs", "classify", "encode", "ranked"]

BLOCK = 256


def encode(method: Method, images: ImageInputs, texts: TextInputs) -> dict[str, torch.Tensor]:
    """See `everclip.Learner.encode`."""
    found = {}
    words = as_texts(texts, "encode: texts")
    features = _features(method, images, "encode")
    if features:
        found["images"] = features["embedding"]
    if words:
        found["texts"] = encode_prompts(method, words)["embedding"]
    return found


def _features(
    method: Method,
    images: ImageInputs,
    where: str,
    reduce: Callable[[Features], Features] = lambda found: found,
) -> Features:
    method.eval()
    preprocess = method.backbone.preprocess
    numbered = enumerate(each_image(images, where))
    pixels = (
        torch.stack([preprocess(open_image(image, f"{where}: image {i}")) for i, image in block])
        for block in _blocks(numbered)
    )
    return joined([reduce(encode_images(method, block)) for block in pixels])


def classify(
    method: Method, images: ImageInputs, names: TextInputs, templates: GivenTemplates
) -> list[tuple[str, float]]:
    """See `everclip.Learner.classify`."""
    return [best[0] for best in ranked(method, images, names, templates, 1)]


def ranked(
    method: Method, images: ImageInputs, names: TextInputs, templates: GivenTemplates, top: int
) -> list[list[tuple[str, float]]]:
    """Return the `top` best names of each image with their cosines, best first; all names if there are fewer.

    Raises:
        ConfigError: if there are no names to choose from, or `top` is not a whole number of at least 1.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ConfigError(f"classify: top: expected a number of names of at least 1, found {top!r}.")
    words = list(dict.fromkeys(as_texts(names, "classify: names")))
    if not words:
        raise ConfigError(
            "classify: no names to choose from: give some (`names`), or learn or observe classes first."
        )
    used = templates_of(templates, "classify: templates")
    space = LabelSpace(tuple(ClassEntry(n, n, used) for n in words))
    method.eval()
    with measuring(method):
        bank = method.class_bank(space)
    # Block by block, because the features per image may grow with every task that the method learned.
    found = _features(
        method, images, "classify", lambda block: {"scores": method.class_scores(block, space, bank)}
    )
    if not found:
        return []
    best = found["scores"].topk(min(top, len(words)), dim=1)
    return [_named(words, *row) for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def _named(words: Sequence[str], values: Sequence[float], places: Sequence[int]) -> list[tuple[str, float]]:
    return [(words[place], value) for value, place in zip(values, places, strict=True)]


def _blocks(images: Iterator[tuple[int, ImageInput]]) -> Iterator[list[tuple[int, ImageInput]]]:
    while block := list(itertools.islice(images, BLOCK)):
        yield block
