"""Predicting with a learner: pictures and texts from wherever the user has them, to embeddings and names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from everclip.contracts import ClassEntry, Features, LabelSpace
from everclip.errors import ConfigError
from everclip.features.encoding import encode_images, encode_prompts, joined, measuring
from everclip.learner.given import Picture, Pictures, Texts, opened, several_pictures, several_texts
from everclip.methods.base import Method
from everclip.templates import GivenTemplates, templates_of

__all__ = ["Picture", "Pictures", "Texts", "classify", "encode", "ranked"]

BLOCK = 256


def encode(method: Method, images: Pictures, texts: Texts) -> dict[str, torch.Tensor]:
    """See `everclip.Learner.encode`."""
    found = {}
    words = several_texts(texts, "encode: texts")
    features = _features(method, images, "encode")
    if features:
        found["images"] = features["embedding"]
    if words:
        found["texts"] = encode_prompts(method, words)["embedding"]
    return found


def _features(
    method: Method, images: Pictures, where: str, reduce: Callable[[Features], Features] = lambda found: found
) -> Features:
    method.eval()
    preprocess = method.backbone.preprocess
    numbered = enumerate(several_pictures(images, where))
    pixels = (
        torch.stack([preprocess(opened(image, f"{where}: picture {i}")) for i, image in block])
        for block in _blocks(numbered)
    )
    return joined([reduce(encode_images(method, block)) for block in pixels])


def classify(
    method: Method, images: Pictures, names: Texts, templates: GivenTemplates
) -> list[tuple[str, float]]:
    """See `everclip.Learner.classify`."""
    return [best[0] for best in ranked(method, images, names, templates, 1)]


def ranked(
    method: Method, images: Pictures, names: Texts, templates: GivenTemplates, top: int
) -> list[list[tuple[str, float]]]:
    """Return the `top` best names of each picture with their cosines, best first; fewer where there are fewer names.

    Raises:
        ConfigError: if there are no names to choose from, or `top` is no number of names.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ConfigError(f"classify: top: expected a number of names of at least 1, found {top!r}.")
    words = list(dict.fromkeys(several_texts(names, "classify: names")))
    if not words:
        raise ConfigError("classify: no names to choose from.")
    used = templates_of(templates, "classify: templates")
    space = LabelSpace(tuple(ClassEntry(n, n, used) for n in words))
    method.eval()
    with measuring(method):
        bank = method.class_bank(space)
    # Block by block: what a method needs of a picture may grow with every task it has learned.
    found = _features(
        method, images, "classify", lambda block: {"scores": method.class_scores(block, space, bank)}
    )
    if not found:
        return []
    best = found["scores"].topk(min(top, len(words)), dim=1)
    return [_named(words, *row) for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def _named(words: Sequence[str], values: Sequence[float], places: Sequence[int]) -> list[tuple[str, float]]:
    return [(words[place], value) for value, place in zip(values, places, strict=True)]


def _blocks(images: Iterator[tuple[int, Picture]]) -> Iterator[list[tuple[int, Picture]]]:
    while block := list(itertools.islice(images, BLOCK)):
        yield block
