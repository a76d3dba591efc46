"""What a phase takes from the buffer: samples mixed into its batches, and a stream of their own for penalties."""

from __future__ import annotations

from dataclasses import dataclass

from everclip.contracts import ClassEntry, Past, Source, Stream, Task
from everclip.data.table import Table
from everclip.methods.labels import REPLAYED_CAPTIONS, are_of
from everclip.methods.penalties.lwf import MEMORY
from everclip.methods.settings import SlotsWithoutReplay
from everclip.scenarios.base import merge_entries

UNUSED = "replay.use: no penalty looks at the stored samples (lwf with images=memory does)"
"""What a phase says of samples that are stored for penalties and serve none."""


@dataclass(frozen=True)
class Mixed:
    """A task's own samples together with those of the buffer.

    Attributes:
        sources: of the stream `main`.
        classes: its classes, or `None` where captions are learned.
        memory: the stored samples as penalties see them, or `None`.
        stretch: factor on the steps.
        notes: for people.
    """

    sources: tuple[Source, ...]
    classes: tuple[ClassEntry, ...] | None
    memory: Table | None = None
    stretch: float = 1.0
    notes: tuple[str, ...] = ()


def mixed(
    task: Task,
    classes: tuple[ClassEntry, ...] | None,
    stored: Table | None,
    settings: SlotsWithoutReplay,
    past: Past,
) -> Mixed:
    """Decide what a task's batches hold.

    Args:
        task: what is learned.
        classes: its classes, where it is learned by them.
        stored: what the buffer holds.
        settings: of the method.
        past: the earlier tasks, whose classes replayed samples have.
    """
    own = (Source(task.train),)
    replay = settings.replaying
    if stored is None:
        return Mixed(own, classes)
    asked = any(given.get("images") == MEMORY for given in settings.penalties.values())
    memory = stored if replay.use != "train" and asked else None
    notes = () if replay.use == "train" or asked else (UNUSED,)
    if replay.use == "distil":
        return Mixed(own, classes, memory, notes=notes)
    share = replay.share
    share = len(stored) / (len(stored) + len(task.train)) if share is None else share
    earlier = [entry for t in past.tasks for entry in t.classes or ()]
    classes = merge_entries([*earlier, *classes]) if classes else None
    if classes and settings.loss == "auto" and not are_of(stored, classes):
        classes, notes = None, (*notes, REPLAYED_CAPTIONS)
    stretch = 1 / (1 - share) if replay.beside else 1.0
    return Mixed((Source(task.train, 1 - share), Source(stored, share)), classes, memory, stretch, notes)


def memory_of(mix: Mixed, batch_size: int) -> dict[str, Stream]:
    """Return the stream of stored pictures, as evaluation sees them, where penalties ask for it."""
    if mix.memory is None:
        return {}
    return {MEMORY: Stream((Source(mix.memory),), batch_size, view="eval", columns=("image",))}
