"""What is trained on, chosen on and measured: the split of a table by hash or by a column's marks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from everclip.data.splits import carve
from everclip.data.table import Table
from everclip.scenarios.spec import SplitSpec

TEST_SALT = "everclip-test-v1"
"""Names the hash that decides what is tested; another salt is another split."""

Part = Literal["train", "val", "test"]
_MARKS: dict[str, Part] = {
    "test": "test",
    "true": "test",
    "val": "val",
    "validation": "val",
    "dev": "val",
}


def part_of(mark: Any) -> Part:
    """Return which part a mark of a split column stands for: whatever is no other part is for training."""
    if mark is True:
        return "test"
    return _MARKS.get(mark.strip().lower(), "train") if isinstance(mark, str) else "train"


@dataclass(frozen=True)
class Parts:
    """A table, split. `val` is `None` where no row is marked for validation, so that it is carved off `train`."""

    train: Table
    val: Table | None
    test: Table

    def keep(self, keep: Callable[[Table], Table]) -> Parts:
        """Return the parts of those rows that a function on tables keeps."""
        return Parts(keep(self.train), None if self.val is None else keep(self.val), keep(self.test))

    def renamed(self, name: str) -> Parts:
        """Return the parts under another name."""
        return self.keep(lambda table: table.renamed(name))

    def __len__(self) -> int:
        return len(self.train) + (0 if self.val is None else len(self.val)) + len(self.test)

    def training(self, share: float) -> tuple[Table, Table]:
        """Return `(train, val)`: the marked rows, or a share by hash of the training rows."""
        return carve(self.train, share) if self.val is None else (self.train, self.val)


def split(table: Table, rule: SplitSpec | None, test: Table | None = None, val: Table | None = None) -> Parts:
    """Split a table by its scenario's rule.

    Args:
        table: training rows, or all rows.
        rule: what is held out; without one `test` is given.
        test: separate test rows; then none of `table` are held out for testing.
        val: separate validation rows.
    """
    found = Parts(table, None, table.select([])) if rule is None else _by_rule(table, rule, test is not None)
    return Parts(found.train, found.val if val is None else val, found.test if test is None else test)


def _by_rule(table: Table, rule: SplitSpec, has_test: bool) -> Parts:
    if rule.column is not None:
        parts = [part_of(mark) for mark in table.column(rule.column)]
        rows: dict[Part, list[int]] = {"train": [], "val": [], "test": []}
        for position, part in enumerate(parts):
            rows[part].append(position)
        val = table.select(rows["val"]) if rows["val"] else None
        return Parts(table.select(rows["train"]), val, table.select(rows["test"]))
    if rule.test is None or has_test:
        return Parts(table, None, table.select([]))
    train, held_out = carve(table, rule.test, salt=TEST_SALT)
    return Parts(train, None, held_out)


def why_no_test(table: Table, rule: SplitSpec | None) -> str:
    """Say how a part came to hold no test rows, with numbers, and what to change."""
    if rule is None:
        return "its separate test data hold none; look at `test` and `where`"
    if rule.column is None:
        return f"split.test is {rule.test}, by hash; raise it"
    marks = Counter(str(mark) for mark in table.column(rule.column)).most_common(5)
    shown = ", ".join(f"{mark!r} {count:,}" for mark, count in marks) or "nothing"
    return f"the column {rule.column!r} holds {shown}; `test` or true marks test rows, or set split.test to a share"
