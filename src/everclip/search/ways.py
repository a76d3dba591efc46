"""What a way of moving an index is given, and what it says: `reindexing.WAYS` holds the ways."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from everclip.errors import ConfigError
from everclip.search.embedding import SearchModel
from everclip.search.engines import LOCAL, Engine
from everclip.search.index import Index

Tell = Callable[[str], None]
FAILED_LIMIT = 0.01
"""Above this share of images that cannot be read, the index is not switched: perhaps a disk is not there."""


@dataclass(frozen=True)
class Budget:
    """When to stop for now: after so many images or seconds. `None`: no limit."""

    images: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str | None) -> Budget:
        """Read `5000` (images), `2h`, `30m` or `90s`.

        Raises:
            ConfigError: for anything else.
        """
        if text is None:
            return cls()
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([hms]?)", text.strip())
        if found is None or (not found[2] and "." in found[1]) or float(found[1]) <= 0:
            raise ConfigError(
                f"--budget: {text!r}: expected a number of images, or a time such as 2h, 30m, 90s."
            )
        if not found[2]:
            return cls(images=int(found[1]))
        return cls(seconds=float(found[1]) * {"h": 3600, "m": 60, "s": 1}[found[2]])


@dataclass(frozen=True, eq=False)
class Job:
    """The work of a way.

    Attributes:
        index: the index.
        old: loads the model of the space that answers.
        new: the model of the space to fill.
        rate: images per second at most; `None`: as fast as they come.
        budget: when to stop for now.
        limit: the largest share of images that may be unreadable.
        recall: the least share of the true nearest items that a map must keep.
        tell: called with lines about the progress.
        engine: embeds.
    """

    index: Index
    old: Callable[[], SearchModel]
    new: SearchModel
    rate: float | None = None
    budget: Budget = Budget()
    limit: float = FAILED_LIMIT
    recall: float = 0.9
    tell: Tell = lambda line: None
    engine: Engine = LOCAL


@dataclass
class Filled:
    """What a way did now.

    Attributes:
        images: encoded now.
        left: items without a vector of their present content, apart from unreadable ones.
        changed: ids whose file has another content than when it was added.
        failed: id -> why an image could not be read.
        seconds: it took.
        lines: what else is to be said.
    """

    images: int = 0
    left: int = 0
    changed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)

    def joined(self, later: Filled) -> Filled:
        """Return this and what was done after the switch; `left` counts items without any vector."""
        return Filled(
            self.images + later.images,
            self.left,
            self.changed + later.changed,
            self.failed | later.failed,
            self.seconds + later.seconds,
            self.lines + later.lines,
        )


@dataclass(frozen=True)
class Estimate:
    """What a way would take.

    Attributes:
        how: the way.
        images: to encode before the switch.
        seconds: until the switch, from a probe.
        disk: bytes of new vectors.
        recall: of the true nearest items that a search finds afterwards, where it is known.
    """

    how: str
    images: int
    seconds: float
    disk: int
    recall: float | None


class Way(Protocol):
    """One way to fill a space; `WAYS` holds all of them."""

    name: str

    def estimate(self, job: Job) -> Estimate:
        """Return what it would take; changes nothing."""

    def fill(self, job: Job) -> Filled:
        """Fill the space of `job.new`; a repeated call continues."""

    def follow(self, job: Job) -> Filled | None:
        """Go on after the space answers; `None` if there is nothing to do."""
