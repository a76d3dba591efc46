"""Convert the regression of `text-ridge` for an export; `everclip.models.exported_correction` reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from everclip.contracts import ClassEntry, TextCorrection
from everclip.methods.text_ridge.regression import UNCHANGED, TextRegression


def solved_texts(regression: TextRegression, rows: Mapping[str, int]) -> tuple[str, ...]:
    """Return the texts that the last solution learned; a task in progress may have added others.

    Args:
        regression: solved at least once.
        rows: text -> its row in the regression.
    """
    support = {row.tobytes() for row in regression.support.cpu().numpy()}
    known = [row.tobytes() in support for row in regression.texts.cpu().numpy()]
    return tuple(t for t, row in rows.items() if known[row] and float(regression.counts[row]) > 0)


def correction_to_export(
    regression: TextRegression,
    gamma: float,
    texts: tuple[str, ...],
    classes: Iterable[ClassEntry],
    encode: Callable[[torch.Tensor], torch.Tensor],
) -> TextCorrection:
    """Return the text correction of a solved regression for an export.

    Args:
        regression: solved at least once.
        gamma: of the kernel.
        texts: those that it learned.
        classes: those of all tasks; of classes with the same name, the first.
        encode: see `TextCorrection`.
    """
    learned = set(texts)
    named: dict[str, ClassEntry] = {}
    for entry in classes:
        if learned.intersection(entry.prompts()):
            named.setdefault(entry.name, entry)
    first = next(iter(named.values()), None)
    rule = {
        "format": 1,
        "kind": "kernel ridge regression from texts to their images (everclip, text-ridge)",
        "gamma": float(gamma),
        "unchanged": UNCHANGED,
        "templates": list(first.templates) if first else ["{}"],
        "classes": [{"name": e.name, "templates": list(e.templates)} for e in named.values()],
        "texts": list(texts),
    }
    tensors = {name: getattr(regression, name) for name in ("support", "weights", "spare")}
    return TextCorrection(tensors, rule, texts, encode)
