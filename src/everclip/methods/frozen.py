"""Which columns of a phase may be embeddings of a tower that does not train, and why others may not."""

from __future__ import annotations

from collections.abc import Collection

from everclip.config import TrainingConfig
from everclip.models.modules.towers import Side


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
            reasons["image"] = (
                "the image tower is frozen, but training.augment draws every picture anew, so it is encoded at every "
                "step; training.augment=none switches that off and encodes each picture once"
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


def _drawn(training: TrainingConfig) -> bool:
    captions = training.captions
    return bool(captions.templates and captions.template_probability) or captions.keyword_probability > 0
