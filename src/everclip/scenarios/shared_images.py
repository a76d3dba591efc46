"""Checks that the training and test sides that a user marked share no image: scores on trained images are too good."""

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
        learned.setdefault(parts.train.content(position), position)
    pairs: dict[str, str] = {}
    for position in range(len(parts.test)):
        content = parts.test.content(position)
        if content in learned and content not in pairs:
            pairs[content] = f"{_name(parts.train, learned[content])} = {_name(parts.test, position)}"
    if not pairs:
        return
    whole = len({parts.test.content(position) for position in range(len(parts.test))})
    shown = "; ".join(list(pairs.values())[:_SHOWN]) + ("; ..." if len(pairs) > _SHOWN else "")
    raise DataError(
        f"{parts.train.name}: {len(pairs):,} of {whole:,} test images are also training images, so every score on "
        f"them would be too good: {shown}. Remove them from one side, or set {key}.shared: remove to train without "
        "them (init-config: --remove-shared; everclip check lists them all)."
    )


def _name(table: Table, position: int) -> str:
    return table.origin(position) or table.ids[position]
