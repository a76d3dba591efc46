"""Predicting with a learner: pictures and texts from wherever the user has them, to embeddings and names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from everclip.contracts import ClassEntry, Features, LabelSpace
from everclip.data.images import decode
from everclip.errors import ConfigError
from everclip.evaluation.banks import encode_pictures, encode_prompts, measuring

Picture = str | Path | bytes | Image.Image
"""A path, encoded bytes, or a PIL picture."""

BLOCK = 256


def encode(method: Any, images: Iterable[Picture], texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """See `everclip.Learner.encode`."""
    found = {}
    features = _features(method, images)
    if features:
        found["images"] = features["embedding"]
    if texts:
        found["texts"] = encode_prompts(method, texts)["embedding"]
    return found


def _features(
    method: Any, images: Iterable[Picture], reduce: Callable[[Features], Features] = lambda found: found
) -> Features:
    method.eval()
    preprocess = method.backbone.preprocess
    pixels = (torch.stack([preprocess(_open(image)) for image in block]) for block in _blocks(images))
    return encode_pictures(method, pixels, reduce=reduce)


def classify(
    method: Any, images: Iterable[Picture], names: Sequence[str], templates: Sequence[str]
) -> list[tuple[str, float]]:
    """See `everclip.Learner.classify`."""
    if not names:
        raise ConfigError("classify: no names to choose from.")
    space = LabelSpace(tuple(ClassEntry(n, n, tuple(templates)) for n in names))
    method.eval()
    with measuring(method):
        bank = method.class_bank(space)
    # Block by block: what a method needs of a picture may grow with every task it has learned.
    found = _features(method, images, lambda block: {"scores": method.class_scores(block, space, bank)})
    if not found:
        return []
    best = found["scores"].max(dim=1)
    return [(names[int(i)], float(v)) for v, i in zip(best.values, best.indices, strict=True)]


def _open(image: Picture) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, bytes):
        return decode(image, "picture")
    path = Path(image).expanduser()
    if not path.is_file():
        raise ConfigError(f"{path}: no such picture.")
    return decode(path.read_bytes(), str(path))


def _blocks(images: Iterable[Picture]) -> Iterator[list[Picture]]:
    rest = iter(images)
    while block := list(itertools.islice(rest, BLOCK)):
        yield block
