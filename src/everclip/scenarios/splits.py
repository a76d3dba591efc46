"""Splits a table into train, validation and test rows, by hash or by the marks of a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from everclip.data.reading.formats.system_files import brief
from everclip.data.reading.spec import DataSpec
from everclip.data.sampling.splits import carve, least_share, side_of
from everclip.data.side_words import Side, side_in
from everclip.data.table import Table
from everclip.scenarios.conditions import require_column
from everclip.scenarios.spec import SplitSpec

NO_ROW = ": classes without a "
"""Start of the note on classes that a side lacks."""

TEST_SALT = "everclip-test-v1"
"""Salt of the hash that decides which rows are test rows."""


@dataclass(frozen=True)
class Parts:
    """A table, split. If no row is marked for validation, `val` is `None` and is carved off `train`."""

    train: Table
    val: Table | None
    test: Table

    def keep(self, keep: Callable[[Table], Table]) -> Parts:
        """Apply a function that selects rows to every side."""
        return Parts(keep(self.train), None if self.val is None else keep(self.val), keep(self.test))

    def by(self, column: str) -> Callable[[Iterable[str]], Parts]:
        """Return a function that selects the rows with given values of a column; the column is read once."""
        positions = {
            id(t): _positions_by_value(t, column) for t in (self.train, self.val, self.test) if t is not None
        }

        def pick(values: Iterable[str]) -> Parts:
            wanted = list(values)

            def rows(table: Table) -> Table:
                found = [positions[id(table)][value] for value in wanted if value in positions[id(table)]]
                return table.select(sorted(chain.from_iterable(found)))

            return self.keep(rows)

        return pick

    def renamed(self, name: str) -> Parts:
        """Return the parts with their tables renamed."""
        return self.keep(lambda table: table.renamed(name))

    def __len__(self) -> int:
        return len(self.train) + (0 if self.val is None else len(self.val)) + len(self.test)

    def training(self, share: float, by: str | None = None) -> tuple[Table, Table]:
        """Return `(train, val)`; without marked validation rows, carve a share by hash off the training rows.

        Args:
            share: of the images.
            by: the column whose hash decides, in place of the image.
        """
        return carve(self.train, share, by=by) if self.val is None else (self.train, self.val)


def _positions_by_value(table: Table, column: str) -> dict[str, list[int]]:
    """Return value (as text) -> positions of its rows."""
    found: dict[str, list[int]] = {}
    for position, value in enumerate(table.column(column)):
        if value is not None:
            found.setdefault(str(value), []).append(position)
    return found


def rule_of(data: DataSpec | None, given: SplitSpec | None) -> SplitSpec | None:
    """Return the split of a data block: the given one, or the column `split` of a public data set.

    By default no validation rows are carved off a public data set: published runs train on all training rows.
    """
    if data is None or not data.is_catalog or (given is not None and given.has_rule):
        return given
    return SplitSpec(column="split", validation=0 if given is None else given.validation)


def split(table: Table, rule: SplitSpec | None, test: Table | None = None, val: Table | None = None) -> Parts:
    """Split a table by its scenario's rule.

    Args:
        table: training rows, or all rows.
        rule: what is held out; `None` needs `test`.
        test: separate test rows; then no row of `table` is held out for testing.
        val: separate validation rows.
    """
    parts = Parts(table, None, table.select([])) if rule is None else _by_rule(table, rule, test is not None)
    return Parts(parts.train, parts.val if val is None else val, parts.test if test is None else test)


def _by_rule(table: Table, rule: SplitSpec, has_test: bool) -> Parts:
    if rule.column is not None:
        rows: dict[Side, list[int]] = {"train": [], "val": [], "test": []}
        for position, mark in enumerate(table.column(rule.column)):
            rows[side_of(mark)].append(position)
        if rule.measure == "validation":
            rows["test"], rows["val"] = sorted([*rows["test"], *rows["val"]]), []
        val = table.select(rows["val"]) if rows["val"] else None
        return Parts(table.select(rows["train"]), val, table.select(rows["test"]))
    if rule.test is None or has_test:
        return Parts(table, None, table.select([]))
    if rule.by is not None:
        require_column(table, rule.by, "split.by")
    salt = f"{TEST_SALT}/{rule.seed}" if rule.seed else TEST_SALT
    train, held_out = carve(table, rule.test, salt, rule.by)
    return Parts(train, None, held_out)


def unknown_marks(table: Table, rule: SplitSpec | None) -> list[str]:
    """Return a note on unknown marks in a split column, since their rows are trained on."""
    if rule is None or rule.column is None or not table.has(rule.column):
        return []
    marks = Counter(
        str(m) for m in table.column(rule.column) if m not in (None, "") and side_of(m) == "train"
    )
    unknown = [(mark, count) for mark, count in marks.most_common() if side_in(mark) is None]
    if not unknown:
        return []
    shown = ", ".join(f"{mark[:40]!r} ({count:,} rows)" for mark, count in unknown[:5])
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return [
        f"{table.name}: the column {rule.column!r} holds unknown marks: {shown}{more}; these rows are trained on"
    ]


def why_no_test(table: Table, rule: SplitSpec | None) -> str:
    """Say why a part has no test rows, with numbers, and what to change."""
    if rule is None:
        return "its separate test data hold none; check `test` and `where`"
    if rule.column is None:
        if rule.by or rule.seed:
            return f"split.test is {rule.test}, by hash, and puts none of its rows on the test side; raise it"
        share = least_share(table, TEST_SALT)
        if share is None:
            return f"split.test is {rule.test}, by hash, and one image cannot be both trained on and tested; add images"
        return (
            f"split.test is {rule.test}, and the hash puts none of its images into the test side; split.test={share} "
            "puts one there"
        )
    marks = Counter(str(mark) for mark in table.column(rule.column)).most_common(5)
    shown = ", ".join(f"{mark!r} {count:,}" for mark, count in marks) or "nothing"
    return f"the column {rule.column!r} holds {shown}; `test` or true marks test rows, or set split.test to a share"


def classes_without_rows(parts: Parts, trained: str, tested: str) -> list[str]:
    """Return notes that name the classes without rows on a side.

    Args:
        parts: the sides.
        trained: what happens to classes without a training row.
        tested: what happens to classes without a test row.
    """
    if not all(table.has("class_key") for table in (parts.train, parts.test)):
        return []
    names: dict[str, str] = {}
    for table in (parts.train, parts.test):
        keys = table.column("class_key")
        shown = table.column("class_name") if table.has("class_name") else keys
        names |= {str(key): str(name) for key, name in zip(keys, shown, strict=True) if key is not None}
    train, test = (
        {str(k) for k in t.column("class_key") if k is not None} for t in (parts.train, parts.test)
    )
    lines = []
    if left := [name for key, name in names.items() if key not in train]:
        lines.append(f"training row, and {trained}: {brief(sorted(left))}")
    if left := [name for key, name in names.items() if key not in test]:
        lines.append(f"test row, and {tested}: {brief(sorted(left))}")
    if parts.val is not None and parts.val.has("class_key"):
        validated = {str(key) for key in parts.val.column("class_key") if key is not None}
        if left := [names[key] for key in names if key in train and key not in validated]:
            lines.append(f"validation row: {brief(sorted(left))}")
    return [f"{parts.train.name}{NO_ROW}{line}" for line in lines]
