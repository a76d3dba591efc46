"""Score old and new sets together, in the label space of all of them: how good the model is in use.

A model may gain on new tasks and lose on old ones. If each set is scored among its own classes only, the old sets may
look unchanged although the model gives every image a new class. So old sets, new sets and everything are also scored in
the label space of all sets, and every image counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from everclip.evaluation.headline import metric_of
from everclip.evaluation.results import Column
from everclip.metrics import find


@dataclass(frozen=True)
class OldAndNew:
    """The columns that are old, new and everything, and the protocol that scores them in one label space.

    Attributes:
        protocol: a protocol with the classes of all sets (`space: all`), or of all sets seen so far.
        metric: the metric of all these columns.
        old: the columns known before the stream.
        new: the columns of the tasks.
        everything: the set `everything` if the result has one, else old and new.
        grows: whether the label space grows with every task, so that rows cannot be compared with each other.
    """

    protocol: str
    metric: str
    old: tuple[Column, ...]
    new: tuple[Column, ...]
    everything: tuple[Column, ...]
    grows: bool = False

    def columns(self, part: str, learned: Sequence[int] | set[int] | None = None) -> tuple[Column, ...]:
        """Return the columns of a part (`old`, `new`, `everything`); in a growing space only those of learned tasks."""
        columns: tuple[Column, ...] = getattr(self, part)
        if not self.grows or learned is None:
            return columns
        done = set(learned)
        if any(c.group == "everything" for c in columns):
            return columns if {c.task for c in self.new} <= done else ()
        return tuple(c for c in columns if c.group != "task" or c.task is None or c.task in done)


def old_and_new(
    columns: Sequence[Column], protocols: Sequence[Mapping[str, Any]], headline: Mapping[str, str]
) -> OldAndNew | str:
    """Return how old and new are scored together, or why they are not."""
    old = tuple(c for c in columns if c.group == "known")
    new = tuple(c for c in columns if c.group == "task")
    whole = tuple(c for c in columns if c.group == "everything")
    if not new:
        return "the benchmark has no set that belongs to a task"
    if len({c.kind for c in (*old, *new)}) > 1:
        return "some sets are measured by retrieval and others by classification"
    if len(old) + len(new) < 2:
        return "there is only one set"
    chosen = _protocol(protocols, headline["protocol"])
    if chosen is None:
        return "no protocol has the names of all sets to choose from (`space: all`)"
    metric = metric_of(new[0], headline)
    entry = find(metric)
    if not whole and not (entry is not None and entry.pooled):
        return f"{metric} of several sets is not the {metric} of all their images"
    return OldAndNew(
        str(chosen["name"]), metric, old, new, whole or (*old, *new), chosen.get("space") == "seen"
    )


def _protocol(protocols: Sequence[Mapping[str, Any]], shown: str) -> Mapping[str, Any] | None:
    """Choose a protocol with `space: all`, else one with `space: seen`; of several the headline's, else the first."""
    for space in ("all", "seen"):
        matching = [p for p in protocols if p.get("space") == space and not p.get("known_task")]
        if matching:
            return next((p for p in matching if p.get("name") == shown), matching[0])
    return None
