"""The learner: a method, what it has learned, and the engine that trains it. Runs are loops over it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Cursor": "everclip.training.watching",
    "Learner": "everclip.learner.core",
    "check_fit": "everclip.learner.fit",
    "learner_for": "everclip.learner.fit",
    "make_task": "everclip.learner.tasks",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
