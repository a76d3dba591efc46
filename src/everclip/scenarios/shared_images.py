"""Checks that the training and test sides that a user marked share no image: scores on trained images are too good.

Two rows show one image if their content is equal or, within one data block, their `image_id`.
"""

from __future__ import annotations

from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.spec import SplitSpec
from everclip.scenarios.splits import Parts

_SHOWN = 3


def require_disjoint(
    parts: Parts, rule: SplitSpec | None, data: DataSpec, key: str, separate: bool = False
) -> None:
    """Raise if the test side that a user marked holds training images, unless `split.shared` is `remove`.

    Splits by hash and splits of public data sets are not checked: `remove_leaks` removes shared images there.

    Args:
        parts: the sides.
        rule: the split; `rule.shared` says what to do with shared images.
        data: where they come from.
        key: the setting that the message names, `split` or `sources.0.split`.
        separate: whether the test side is a data block of its own.

    Raises:
        DataError: with counts, some file names, and the setting that removes the shared images.
    """
    marked = separate or (rule is not None and rule.column is not None)
    ours = data.is_catalog or all(source.startswith("builtin:") for source in data.sources)
    if not marked or ours or (rule is not None and rule.shared == "remove"):
        return
    learned: dict[str, int] = {}
    for position in range(len(parts.train)):
        for name in _names_of(parts.train, position, separate):
            learned.setdefault(name, position)
    pairs: dict[str, str] = {}
    for position in range(len(parts.test)):
        content = parts.test.content(position)
        same = next((name for name in _names_of(parts.test, position, separate) if name in learned), None)
        if same is not None and content not in pairs:
            pairs[content] = f"{_name(parts.train, learned[same])} = {_name(parts.test, position)}"
    if not pairs:
        return
    whole = len({parts.test.content(position) for position in range(len(parts.test))})
    shown = "; ".join(list(pairs.values())[:_SHOWN]) + ("; ..." if len(pairs) > _SHOWN else "")
    raise DataError(
        f"{parts.train.name}: {len(pairs):,} of {whole:,} test images are also training images, so every score on "
        f"them would be too good: {shown}. Remove them from one side, or set {key}.shared: remove to train without "
        "them (init-config: --remove-shared; everclip check lists them all)."
    )


def _names_of(table: Table, position: int, separate: bool) -> tuple[str, ...]:
    """Return what tells an image: its content and, within one data block, its `image_id`."""
    content = table.content(position)
    return (content,) if separate else (content, f"image_id {table.identity(position)}")


def without_test_ids(parts: Parts, rule: SplitSpec | None, notes: list[str]) -> Parts:
    """Remove rows whose `image_id` is also on the test side, if the split says so (`shared: remove`).

    The images may differ (downloaded twice), so that a comparison by content does not find them. A split by hash puts
    all rows of an `image_id` on one side.

    Args:
        parts: the sides of one data block.
        rule: the split.
        notes: gets a line that counts the rows.
    """
    if rule is None or rule.column is None or rule.shared != "remove":
        return parts
    held_out = set(parts.test.identities())
    measured = {parts.test.content(i) for i in range(len(parts.test))}

    def kept(table: Table) -> Table:
        # Equal images are left to `remove_leaks`, which also knows the other sets.
        names = table.identities()
        rows = [i for i, name in enumerate(names) if name not in held_out or table.content(i) in measured]
        if len(rows) < len(table):
            notes.append(
                f"{table.name}: {len(table) - len(rows):,} rows are left out, because test rows have their image_id"
            )
        return table.select(rows)

    return Parts(kept(parts.train), None if parts.val is None else kept(parts.val), parts.test)


def _name(table: Table, position: int) -> str:
    return table.origin(position) or table.ids[position]
