"""Scores of old and new sets together, among the answers of all of them: how good the model is in use.

A model that learns may win on new tasks and lose on old ones; among its own answers each set may even look kept while
the model answers every picture with a new class. So old sets, new sets and all of them as one are scored among the
answers of all of them, every picture counting once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from everclip.evaluation.headline import metric_of
from everclip.evaluation.results import Column
from everclip.metrics import find


@dataclass(frozen=True)
class Together:
    """Which columns are old, new, and everything, and under which protocol they meet the same answers.

    Attributes:
        protocol: one whose answers are those of all sets (`space: all`), or of all seen so far.
        metric: the metric of all of these columns.
        old: what was known before the stream.
        new: the tasks.
        everything: the set `everything` where the result has one, else old and new.
        grows: whether the answers become more with every task: then rows are not compared with each other.
    """

    protocol: str
    metric: str
    old: tuple[Column, ...]
    new: tuple[Column, ...]
    everything: tuple[Column, ...]
    grows: bool = False

    def columns(self, part: str, learned: Sequence[int] | set[int] | None = None) -> tuple[Column, ...]:
        """Return the columns of a part; where answers grow, those whose tasks were learned."""
        found: tuple[Column, ...] = getattr(self, part)
        if not self.grows or learned is None:
            return found
        done = set(learned)
        if any(c.group == "everything" for c in found):
            return found if {c.task for c in self.new} <= done else ()
        return tuple(c for c in found if c.group != "task" or c.task is None or c.task in done)


def together(
    columns: Sequence[Column], protocols: Sequence[Mapping[str, Any]], headline: Mapping[str, str]
) -> Together | str:
    """Return how old and new are scored together, or why they are not."""
    old = tuple(c for c in columns if c.group == "known")
    new = tuple(c for c in columns if c.group == "task")
    whole = tuple(c for c in columns if c.group == "everything")
    if not new:
        return "the benchmark has no set that belongs to a task"
    if len({c.kind for c in (*old, *new)}) > 1:
        return "some sets are measured by retrieval and others by classification"
    if len(old) + len(new) < 2:
        return "there is one set alone, and nothing beside it"
    chosen = _protocol(protocols, headline["protocol"])
    if chosen is None:
        return "no protocol has the answers of all sets (one with `space: all`)"
    metric = metric_of(new[0], headline)
    entry = find(metric)
    if not whole and not (entry is not None and entry.pooled):
        return f"{metric} of several sets is not the {metric} of all their pictures"
    return Together(
        str(chosen["name"]), metric, old, new, whole or (*old, *new), chosen.get("space") == "seen"
    )


def _protocol(protocols: Sequence[Mapping[str, Any]], shown: str) -> Mapping[str, Any] | None:
    """Choose by its answers (those of all sets, else of all seen so far), then the headline's, then the first."""
    for space in ("all", "seen"):
        found = [p for p in protocols if p.get("space") == space and not p.get("known_task")]
        if found:
            return next((p for p in found if p.get("name") == shown), found[0])
    return None
