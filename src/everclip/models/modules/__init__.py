"""Modules grown inside a CLIP: LoRA, adapters, prompts, experts, task prompts. Re-exports load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everclip.models.modules.grow import Grown as Grown
    from everclip.models.modules.grow import grown as grown
    from everclip.models.modules.grow import insert as insert
    from everclip.models.modules.grow import merge_into as merge_into
    from everclip.models.modules.grow import mergeable as mergeable
    from everclip.models.modules.grow import remove as remove

__all__ = ["Grown", "grown", "insert", "merge_into", "mergeable", "remove"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("everclip.models.modules.grow"), name)
