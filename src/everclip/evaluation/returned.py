"""What a model and the function of a metric may return for one evaluation set."""

from __future__ import annotations

import torch

from everclip.errors import ConfigError, DivergedError
from everclip.metrics import Metric


def require_numbers(name: str, *valid: torch.Tensor) -> None:
    """Check that a model gave numbers.

    Args:
        name: of the evaluation set.
        valid: which elements of its embeddings or scores are numbers, bool of any shape.

    Raises:
        DivergedError: if one is not.
    """
    if not all(bool(part.all()) for part in valid):
        raise DivergedError(
            f"{name}: an embedding or a score of the model is NaN or infinite; the model has diverged, or its weights "
            "are damaged."
        )


def require_values(entry: Metric, found: object) -> None:
    """Check what the function of a metric of a set returned.

    Raises:
        ConfigError: if it does not fit the metric's `interval`; says what is expected.
    """
    if entry.interval == "none":
        fits = isinstance(found, tuple) and len(found) == 2
        wanted = "the value and its n, because the metric has no interval"
    else:
        fits = isinstance(found, torch.Tensor) and found.dim() == 1
        wanted = "a tensor `(N,)`, one value per item"
    if fits and isinstance(found, torch.Tensor) and entry.interval == "wilson":
        fits = bool(((found == 0) | (found == 1)).all())
        wanted = "hits, 0 or 1 per item, which interval='wilson' counts; for other values take 'bootstrap'"
    if not fits:
        raise ConfigError(
            f"metric {entry.name!r} ({entry.function.__module__}): its function returned {_described(found)}; expected "
            f"{wanted}."
        )


def _described(found: object) -> str:
    if isinstance(found, torch.Tensor):
        return f"a tensor {tuple(found.shape)} of {found.dtype}"
    return f"{type(found).__name__} ({found!r:.60})"
