"""The quarantine: rows that cannot be used, each with a reason from a fixed vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from everclip.data.lettering import plain
from everclip.errors import DataError

REASONS = {
    "no-image": "the row names no image",
    "missing-file": "the image's file is not there",
    "not-downloaded": "the row gives a URL, and the folder of downloads holds no such file",
    "outside-root": "the path leaves the folder that images must lie in",
    "unsafe-member": "a device, or a path or link that leaves the archive",
    "unreadable-file": "the system refuses to read the file",
    "zero-bytes": "the image is empty",
    "not-an-image": "the bytes are no image of a known format",
    "truncated": "the image ends early",
    "damaged": "the image is damaged",
    "unsupported": "a kind of image that is not read",
    "too-large": "more pixels or bytes than are ever decoded",
    "extreme-aspect": "one side is more than a hundred times the other",
    "damaged-archive": "the archive or Parquet file is damaged or cut short; how much is lost is not known",
    "bad-row": "the row itself is broken: wrong number of cells, no valid JSON, a cell of the wrong kind",
    "bad-utf8": "the text is not UTF-8",
    "empty-caption": "the caption is empty and there is no class name instead",
    "missing-label": "the class is missing or NaN while other rows have one",
    "missing-id": "the id is missing while other rows have one",
    "duplicate-id": "the id stands in an earlier row already",
}
"""Reasons and their meaning. The keys are used by results, `check` and tests."""

DAMAGED = "damaged-archive"

Archives = Literal["refused", "limited", "noted"]
"""Damaged archives stop the load; or only if more than `quarantine_limit` of all files are damaged; or never."""


class DamagedFileError(DataError):
    """A file with many samples that cannot be read at all."""


_EXAMPLES = 3


@dataclass(frozen=True)
class Entry:
    """One row that was set aside.

    Attributes:
        row: 1-based number of the row in its source, or `None` if it has no rows.
        name: for people: a file with its row, or a member of an archive.
        reason: a key of `REASONS`.
        detail: what was found.
        path: the image's file, if it has one of its own.
    """

    row: int | None
    name: str
    reason: str
    detail: str = ""
    path: str = ""


@dataclass(frozen=True)
class Quarantine:
    """The rows of a source that were set aside.

    Attributes:
        source: the source's name.
        total: number of rows, usable or not.
        entries: the unusable rows, in order.
        sides: (rows set aside, all rows) per side; empty if there is no column `split` or nothing was set aside.
        counted: whether missing images of a public data set stop the load.
        archives: whether damaged archives stop the load.
        files: number of files that were read.
    """

    source: str
    total: int
    entries: tuple[Entry, ...] = ()
    sides: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    counted: bool = True
    archives: Archives = "refused"
    files: int = 1

    @property
    def share(self) -> float:
        """The unusable rows as a share of all."""
        return len(self.entries) / self.total if self.total else 0.0

    @property
    def mendable(self) -> float:
        """The unusable rows as a share of all; without rows of damaged archives if these do not stop the load."""
        if self.archives == "refused":
            return self.share
        damaged = {entry.name for entry in self.entries if entry.reason == DAMAGED}
        left = sum(entry.name.split(", ")[0] not in damaged for entry in self.entries)
        return left / self.total if self.total else 0.0

    @property
    def damaged_files(self) -> int:
        """The number of damaged archives."""
        return len({entry.name for entry in self.entries if entry.reason == DAMAGED})

    def archives_stop(self, limit: float) -> bool:
        """Return whether damaged archives stop the load.

        Args:
            limit: the largest share of damaged files that is allowed, where they are `limited`.
        """
        if self.archives == "limited":
            return self.damaged_files > limit * self.files
        return self.archives == "refused" and self.damaged_files > 0

    def counts(self) -> dict[str, int]:
        """Return the number of rows per reason, the most frequent first."""
        return dict(Counter(entry.reason for entry in self.entries).most_common())

    def summary(self) -> str:
        """Return one line: how many rows were set aside, and why."""
        source = plain(self.source, 200)
        if not self.entries:
            return f"{source}: all {self.total:,} rows can be used"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.counts().items())
        sides = ", ".join(f"{gone:,} of {rows:,} {side}" for side, (gone, rows) in self.sides.items())
        return (
            f"{source}: {len(self.entries):,} of {self.total:,} rows set aside ({self.share:.1%}): {reasons}"
            + (f" ({sides})" if sides else "")
        )

    def table(self) -> str:
        """Return the reasons with their counts and first examples, for people."""
        lines = [self.summary()]
        for reason, count in self.counts().items():
            lines.append(f"  {count:>7,}  {reason}: {REASONS[reason]}")
            found = [entry for entry in self.entries if entry.reason == reason]
            lines += [
                f"           - {plain(e.name, 200)}" + (f": {plain(e.detail, 400)}" if e.detail else "")
                for e in found[:_EXAMPLES]
            ]
            if count > _EXAMPLES:
                lines.append(f"           - and {count - _EXAMPLES:,} more")
        return "\n".join(lines)


def require_enough(quarantine: Quarantine, limit: float) -> None:
    """Stop if too large a share of the rows cannot be used, an archive is damaged, or there are no rows at all.

    Raises:
        DataError: with the table of reasons.
    """
    if quarantine.total == 0:
        raise DataError(f"{quarantine.source}: holds no rows.")
    if quarantine.archives_stop(limit) and quarantine.archives == "limited":
        raise DataError(
            f"{quarantine.table()}\nMore than data.quarantine_limit = {limit:.1%} of the files are damaged "
            f"({quarantine.damaged_files:,} of {quarantine.files:,}). Download or write them again, or raise the limit."
        )
    if quarantine.archives_stop(limit) and limit < 1:
        raise DataError(
            f"{quarantine.table()}\nDamaged archives stop the load, since nobody knows how much they held. Download or "
            "write them again, or continue with the intact part: data.damaged_archives=noted, or limited (to the share "
            "data.quarantine_limit of all files)."
        )
    if quarantine.mendable > limit:
        raise DataError(
            f"{quarantine.table()}\nMore than data.quarantine_limit = {limit:.1%} of the rows cannot be used. Mend "
            "them, or raise the limit to go on without them."
        )
