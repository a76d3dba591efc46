"""Keep the sides that a user's data mark in a proposed stream; report the missing ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from everclip.data.sampling.splits import least_share, side_of
from everclip.data.side_words import Side
from everclip.data.table import Table
from everclip.scenarios.splits import TEST_SALT

SHARES = ((0.2, 0.1), (0.3, 0.1), (0.3, 0.3), (0.5, 0.3), (0.4, 0.4))
"""Shares of test rows and of validation rows, tried until every task and class has rows on every side."""

FEW = 50
"""With at most this many rows, further shares are tried."""

VALIDATION = (0.1, 0.3, 0.5)
"""Shares of the training rows that become validation rows if the user marks none, tried in this order."""


def marked(table: Table) -> Counter[Side]:
    """Count the rows of every side that the column `split` marks; empty without such a column."""
    if not table.has("split"):
        return Counter()
    return Counter(side_of(mark) for mark in table.column("split"))


def rule_by_marks(table: Table, validation: float, more: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the split that keeps the marked sides, or `None` if only training rows are marked."""
    found = marked(table)
    if found["test"]:
        return {"column": "split", "validation": validation, **more}
    if found["val"]:
        return {"column": "split", "measure": "validation", "validation": validation, **more}
    return None


def splits(
    tables: Sequence[Table], tested: bool = False, remove_shared: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield splits in order of preference; marked sides are never mixed.

    Args:
        tables: the data sets.
        tested: whether there are separate test data.
        remove_shared: whether images on several sides are removed from training instead of refused.
    """
    more = {"shared": "remove"} if remove_shared else {}
    if tested:
        sides = marked(tables[0])
        rule = {"column": "split"} if sides["test"] or sides["val"] else {}
        yield from ({**rule, "validation": share, **more} for share in VALIDATION)
        return
    rules = [rule_by_marks(table, 0.1, more) for table in tables]
    if all(rule is not None and rule == rules[0] for rule in rules):
        yield from ({**(rules[0] or {}), "validation": share} for share in VALIDATION)
        return
    for test, validation in (*SHARES, *_of_few(tables)):
        yield {"test": test, "validation": validation, **(more if any(rules) else {})}


def _of_few(tables: Sequence[Table]) -> Iterator[tuple[float, float]]:
    """Yield shares for very few rows, for which no usual share leaves a test row and two training rows."""
    if sum(map(len, tables)) > FEW:
        return
    found = [least_share(table, TEST_SALT) for table in tables]
    shares = {test for test, _ in SHARES} | {
        max((share for share in found if share is not None), default=0.2)
    }
    yield from ((test, 0.0) for test in sorted(shares))


def notes_on_sides(tables: Sequence[Table], document: Mapping[str, Any]) -> list[str]:
    """Return lines about the marked sides, the missing sides, and their replacement."""
    rules = [document["split"]] * len(tables)
    if "sources" in document:
        rules = [source.get("split", document["split"]) for source in document["sources"]]
    lines = []
    for table, rule in zip(tables, rules, strict=True):
        lines += _of_one(table, rule, "test" in document)
    return lines


def _of_one(table: Table, rule: Mapping[str, Any], tested: bool) -> list[str]:
    found = marked(table)
    by_hash = f"{rule['validation']:.0%} of the training rows, by hash, are for validation"
    if not rule["validation"]:
        by_hash = "there are too few rows to hold some out for validation"
    if tested:
        lines = ["the separate test data are measured"]
        if found["test"]:
            lines.append(f"the {found['test']:,} rows marked as test are neither trained on nor measured")
        lines.append(f"{found['val']:,} marked rows are for validation" if found["val"] else by_hash)
    elif not rule.get("column"):
        lines = [
            f"no row is marked as test: {rule['test']:.0%} of the rows, by hash, are held out as test; {by_hash}"
        ]
    elif rule.get("measure") == "validation":
        lines = [
            f"no row is marked as test: the {found['val']:,} rows marked as validation are measured, and never trained "
            f"on; {by_hash}"
        ]
    else:
        lines = [f"the {found['test']:,} rows marked as test are measured, and never trained on"]
        lines.append(f"{found['val']:,} marked rows are for validation" if found["val"] else by_hash)
    return [f"{table.name}: {line}" for line in lines]
