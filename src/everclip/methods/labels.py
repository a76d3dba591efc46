"""Decide whether replayed samples can be learned by class name, together with the task's own."""

from __future__ import annotations

from everclip.contracts import ClassEntry
from everclip.data.table import Table

REPLAYED_CAPTIONS = "learned from captions (or class names): replayed samples have none of the classes so far"
"""The note of a phase if a task with classes is learned from captions because of replay."""


def all_have_classes(stored: Table, classes: tuple[ClassEntry, ...]) -> bool:
    """Return whether every sample has one of the classes; samples of other sources or of the base may have none."""
    known = {entry.key for entry in classes}
    return stored.has("class_key") and known.issuperset(stored.column("class_key"))
