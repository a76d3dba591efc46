"""Whether replayed samples can be learned by class name, together with a task that is."""

from __future__ import annotations

from everclip.contracts import ClassEntry
from everclip.data.table import Table

REPLAYED_CAPTIONS = "learned from captions (or class names): what is replayed has none of the classes so far"
"""What a phase says where a task with classes is learned from captions after all."""


def are_of(stored: Table, classes: tuple[ClassEntry, ...]) -> bool:
    """Whether every sample has one of the classes: other sources, and the base's own data, need not."""
    known = {entry.key for entry in classes}
    return stored.has("class_key") and known.issuperset(stored.column("class_key"))
