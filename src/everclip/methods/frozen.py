"""Towers that do not train: which columns of a phase may be their embeddings, and how a step gets these."""

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
    """Replace the input of frozen towers by their embeddings where that input is the same at every step.

    Args:
        columns: what a stream asks for: `image`, `tokens`, `label`.
        frozen: towers of which nothing trains.
        training: says whether pictures and captions are drawn anew at every step; `None` = unknown.

    Returns:
        The columns with `image_embedding`, `text_embedding`, `class_embedding` where they are served from a cache;
        and for each frozen tower that cannot be cached the reason, for people.
    """
    if training is None or not training.cache:
        return columns, {}
    found, reasons = list(columns), {}
    if "image" in frozen and "image" in columns:
        if training.augment is None:
            found[found.index("image")] = "image_embedding"
        else:
            how = "shows crops" if training.augment.fixed else "draws every picture anew"
            reasons["image"] = (
                f"the image tower is frozen, but training.augment {how}, so it is encoded at every step; "
                "training.augment=none switches that off and encodes each picture once"
            )
    if "text" in frozen and "tokens" in columns:
        if not _drawn(training):
            found[found.index("tokens")] = "text_embedding"
        else:
            reasons["text"] = (
                "the text tower is frozen, but training.captions draws every caption anew, so it is encoded at every "
                "step; training.captions.template_probability=0 and keyword_probability=0 switch that off"
            )
    if "text" in frozen and "label" in columns:
        found.append("class_embedding")
    return tuple(found), reasons


def embeddings(
    backbone: Backbone, side: Side, columns: Mapping[str, Any], column: str, served: str | None = None
) -> torch.Tensor:
    """Return a step's embeddings `(N, D)`: from the cache where the phase asked for them, else from the tower.

    Args:
        backbone: encodes; without gradient if nothing of the tower trains.
        side: the tower.
        columns: one stream's part of a batch.
        column: the tower's input.
        served: the column of cached embeddings; default `image_embedding` or `text_embedding`.
    """
    found: torch.Tensor | None = columns.get(served or f"{side}_embedding")
    if found is not None:
        return found
    encode = backbone.encode_image if side == "image" else backbone.encode_text
    with torch.set_grad_enabled(torch.is_grad_enabled() and not is_frozen(backbone.clip, side)):
        return encode(columns[column])


def class_texts(backbone: Backbone, columns: Mapping[str, Any]) -> torch.Tensor:
    """Return the embeddings `(C, D)` of a step's class names, each in its first template; padding is not computed."""
    with short_texts(backbone.clip, columns.get("class_length")):
        return embeddings(backbone, "text", columns, "class_tokens", "class_embedding")


def rest(backbone: Backbone) -> None:
    """Put towers of which nothing trains into evaluation mode, where the same input has the same embedding."""
    for side in SIDES:
        if is_frozen(backbone.clip, side):
            for part in tower_parts(backbone.clip, side):
                part.eval()


def _drawn(training: TrainingConfig) -> bool:
    captions = training.captions
    return bool(captions.templates and captions.template_probability) or captions.keyword_probability > 0
