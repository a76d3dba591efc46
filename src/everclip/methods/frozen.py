"""Frozen towers: replace their input by cached embeddings, and encode the rest in a step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from everclip.config import TrainingConfig
from everclip.models.backbone import Backbone
from everclip.models.modules.short_texts import short_texts
from everclip.models.modules.towers import SIDES, Side, is_frozen, tower_parts


def cached_columns(
    columns: tuple[str, ...], frozen: Collection[Side], training: TrainingConfig | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Replace the input of frozen towers by their embeddings if the input is the same at every step.

    Args:
        columns: the columns of a stream: `image`, `tokens`, `label`.
        frozen: towers without trainable parameters.
        training: decides whether images and captions differ at every step; `None` = unknown.

    Returns:
        The columns, with `image_embedding`, `text_embedding`, `class_embedding` for those that come from a cache; and
        for each frozen tower that cannot use the cache the reason, as a text for people.
    """
    if training is None or not training.cache:
        return columns, {}
    served, reasons = list(columns), {}
    if "image" in frozen and "image" in columns:
        if training.augment is None:
            served[served.index("image")] = "image_embedding"
        else:
            how = "crops images" if training.augment.fixed else "changes every image at random"
            reasons["image"] = (
                f"the image tower is frozen, but training.augment {how}, so images are encoded at every step; "
                "with training.augment=none each image is encoded once"
            )
    if "text" in frozen and "tokens" in columns:
        if not _captions_vary(training):
            served[served.index("tokens")] = "text_embedding"
        else:
            reasons["text"] = (
                "the text tower is frozen, but training.captions changes captions at random, so they are encoded at "
                "every step; with training.captions.template_probability=0 and keyword_probability=0 each caption is "
                "encoded once"
            )
    if "text" in frozen and "label" in columns:
        served.append("class_embedding")
    return tuple(served), reasons


def embeddings(
    backbone: Backbone, side: Side, columns: Mapping[str, Any], column: str, served: str | None = None
) -> torch.Tensor:
    """Return a step's embeddings `(N, D)`, from the cache if the batch has them, else from the tower.

    Args:
        backbone: encodes; without gradient if the tower is frozen.
        side: the tower.
        columns: one stream's part of a batch.
        column: the tower's input.
        served: the column of cached embeddings; default `image_embedding` or `text_embedding`.
    """
    cached: torch.Tensor | None = columns.get(served or f"{side}_embedding")
    if cached is not None:
        return cached
    encode = backbone.encode_image if side == "image" else backbone.encode_text
    inputs: torch.Tensor = columns[column]
    with torch.set_grad_enabled(torch.is_grad_enabled() and not is_frozen(backbone.clip, side)):
        if not len(inputs):  # a process without samples; towers cannot encode none, and gradients must exist
            return encode(inputs.new_zeros(1, *inputs.shape[1:]))[:0]
        return encode(inputs)


def class_texts(backbone: Backbone, columns: Mapping[str, Any]) -> torch.Tensor:
    """Return the embeddings `(C, D)` of a step's class names, each in its first template, computed without padding."""
    with short_texts(backbone.clip, columns.get("class_length")):
        return embeddings(backbone, "text", columns, "class_tokens", "class_embedding")


def eval_frozen_towers(backbone: Backbone) -> None:
    """Put frozen towers into evaluation mode, so that the same input always has the same embedding."""
    for side in SIDES:
        if is_frozen(backbone.clip, side):
            for part in tower_parts(backbone.clip, side):
                part.eval()


def _captions_vary(training: TrainingConfig) -> bool:
    captions = training.captions
    return bool(captions.templates and captions.template_probability) or captions.keyword_probability > 0
