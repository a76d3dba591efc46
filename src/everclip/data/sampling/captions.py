"""Draw the training text of a sample: its caption, a template around it, or some of its keywords."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from everclip.config import CaptionConfig
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.templates import filled


def own_caption(table: Table, position: int) -> str:
    """Return a sample's caption as it is in the data, or its class name if it has no caption.

    Raises:
        DataError: if it has none.
    """
    for column in ("caption", "class_name"):
        given = table.value(column, position) if table.has(column) else None
        if given is not None and given != "":
            return str(given)
    raise DataError(f"{table.name}, id {table.ids[position]}: there is no caption to train on.")


def source_caption(table: Table, position: int) -> str | None:
    """Return what a sample's caption is a translation of: the column `source_caption`; without it, its own caption.

    `None` if the sample has no source caption.
    """
    if not table.has("source_caption"):
        return own_caption(table, position)
    given = table.value("source_caption", position)
    return str(given) if given else None


def draw_caption(
    caption: str, keywords: Sequence[str] | None, config: CaptionConfig, draw: np.random.Generator
) -> str:
    """Return the text of a sample in one step.

    Args:
        caption: the sample's own caption.
        keywords: words that also fit it; may be empty or `None`.
        config: probabilities and templates.
        draw: the sample's own generator.
    """
    choice, which, count = draw.random(3)
    words = list(keywords or ())
    if words and choice < config.keyword_probability:
        most = min(config.keywords, len(words))
        picked = draw.permutation(len(words))[: 1 + int(count * most)]
        return ", ".join(words[int(i)] for i in picked)
    # A sample without keywords uses its plain caption instead of them: the share of templates stays the same.
    share = choice - config.keyword_probability
    if not config.templates or not 0 <= share < config.template_probability:
        return caption
    return filled(config.templates[int(which * len(config.templates))], caption)
