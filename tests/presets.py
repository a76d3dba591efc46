"""What it takes to run a preset on the small streams: sizes in place of the published ones, and which streams fit."""

from __future__ import annotations

from everclip.methods.build import method_class
from everclip.registry import methods

SMALL: dict[str, tuple[str, ...]] = {
    # Its state is the square of the width: 1.8 GB as published.
    "rail-primal-published": ("method.dimension=64",),
    "rail": ("method.dimension=64",),
}
"""preset -> what is set differently for a model of two layers and some dozens of pictures."""


def settings(name: str) -> tuple[str, ...]:
    """Return the overrides that choose a preset, small enough for tests."""
    return (f"method={name}", *SMALL.get(name, ()))


def learns(name: str, kind: str) -> bool:
    """Return whether a preset can learn from a kind of stream; only that of classes has classes throughout."""
    return kind == "classes" or "captions" in method_class(name).needs.supervision


def of_any_kind() -> list[str]:
    """Return the presets that learn from captions as well as from classes."""
    return [name for name in sorted(methods()) if learns(name, "time")]
