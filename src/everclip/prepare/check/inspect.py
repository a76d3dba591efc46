"""Count the content of a data set for `everclip check`: classes, texts, time, sizes, duplicates."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from everclip.data.reading.quarantine import Quarantine
from everclip.data.reading.sources import Loaded
from everclip.data.sampling.splits import side_of
from everclip.data.table import Table
from everclip.models.limits import ModelLimits
from everclip.prepare.check.advice import advise
from everclip.prepare.check.document import (
    Check,
    Copies,
    Duplicated,
    Leaking,
    Leaks,
    Row,
    SetAside,
    Sizes,
)
from everclip.prepare.check.duplicates import DISTANCE, Duplicates, Group, Tick, find_duplicates
from everclip.prepare.check.inspect_texts import captions_of, classes_of, counts_of, spread, text_column
from everclip.prepare.check.periods import time_counts

EXAMPLES = 200
"""Limit of groups, leaks and set-aside rows in the document; the files beside it list all."""


@dataclass(frozen=True)
class Inspected:
    """The document, and the data for the written files and the sample sheet."""

    check: Check
    table: Table
    sides: tuple[str | None, ...]
    duplicates: Duplicates
    quarantine: Quarantine


def join(loaded: Loaded, test: Loaded) -> Loaded:
    """Join data with separate test data; mark them in the column `split`."""

    def marked(table: Table, side: str) -> Table:
        own = side == "train" and table.has("split")
        sides = map(side_of, table.column("split")) if own else [side] * len(table)
        return table.with_column("split", sides, pa.string())

    parts = [marked(loaded.table, "train"), marked(test.table, "test")]
    name = f"{loaded.table.name} (test: {test.table.name})"
    aside = Quarantine(
        name,
        loaded.quarantine.total + test.quarantine.total,
        (*loaded.quarantine.entries, *test.quarantine.entries),
        archives=loaded.quarantine.archives,
        files=loaded.quarantine.files + test.quarantine.files,
    )
    guesses = tuple(dict.fromkeys((*loaded.guesses, *test.guesses)))
    facts = pa.concat_tables([loaded.facts, test.facts])
    return Loaded(Table.concat(parts, name), aside, {**test.columns, **loaded.columns}, guesses, facts)


def inspect(
    loaded: Loaded,
    model: ModelLimits,
    limit: float,
    leak_limit: float = 0.0,
    distance: int = DISTANCE,
    tick: Tick | None = None,
) -> Inspected:
    """Count the content of a data set and find its problems.

    Args:
        loaded: the data.
        model: limits of the model that the data are for.
        limit: the share of rows that may be set aside.
        leak_limit: the share of test images that may also be training images.
        distance: bits in which the hashes of near duplicates may differ.
        tick: called with (done, total) while candidates for duplicates are compared.
    """
    table, facts = loaded.table, loaded.facts
    # A row without a mark is a training row.
    marked = table.has("split") and any(table.column("split"))
    sides = tuple(map(side_of, table.column("split"))) if marked else (None,) * len(table)
    found = find_duplicates(table, facts, sides, distance, tick or (lambda done, total: None))
    first = _first_rows(table)
    names = _Rows(table, sides)
    check = Check(
        source=table.name,
        columns=loaded.columns,
        guesses=loaded.guesses,
        rows=len(table),
        pictures=len(first),
        splits=counts_of(side for side in sides if side),
        languages=counts_of(v for v in table.column("language") if v) if table.has("language") else {},
        classes=classes_of(table, sides, first, model.tokenise),
        captions=captions_of(table, sides, model.name, model.context, model.lengths, model.tokenise),
        time=time_counts(table.column("time")) if table.has("time") else None,
        sizes=_sizes(facts, first, model, names) if first else None,
        duplicates=_duplicated(found, names),
        leaks=_leaks(found, sides, table, names, leak_limit),
        quarantine=_set_aside(loaded.quarantine, limit),
        findings=(),
    )
    check = check.model_copy(update={"findings": advise(check)})
    return Inspected(check, table, sides, found, loaded.quarantine)


class _Rows:
    """Describes rows for people; reads text columns once."""

    def __init__(self, table: Table, sides: Sequence[str | None]) -> None:
        self._table, self._sides = table, sides
        self._texts = text_column(table)
        self._root = _common_folder(table)
        self._labels = table.column("class_name") if table.has("class_name") else None

    def __call__(self, row: int) -> Row:
        label = self._labels[row] if self._labels else None
        return Row(
            id=self._table.ids[row],
            origin=self._table.origin(row).removeprefix(self._root),
            text=str(self._texts[row] or "")[:300],
            label=None if label is None else str(label),
            split=self._sides[row],
        )


def _common_folder(table: Table) -> str:
    """Return the common folder of the image files, with its separator; empty without files."""
    some = {int(row) for row in np.linspace(0, len(table) - 1, 64)} if len(table) else set()
    folders = {os.path.dirname(table.origin(row)) for row in some} - {""}
    if not folders or len({Path(folder).anchor for folder in folders}) > 1:
        return ""
    return os.path.join(os.path.commonpath(folders), "")


def _first_rows(table: Table) -> list[int]:
    """Return one row per image: rows that share an `image_id` are captions of one."""
    first: dict[str, int] = {}
    for row, identity in enumerate(table.identities()):
        first.setdefault(identity, row)
    return list(first.values())


def _sizes(facts: pa.Table, first: list[int], model: ModelLimits, names: Callable[[int], Row]) -> Sizes:
    chosen = facts.take(pa.array(first))
    width, height, size, frames = (
        chosen.column(name).to_numpy() for name in ("width", "height", "bytes", "frames")
    )
    blank = [row for row, is_blank in zip(first, chosen.column("blank").to_pylist(), strict=True) if is_blank]
    return Sizes(
        width=spread(width),
        height=spread(height),
        bytes=spread(size),
        total=int(size.sum()),
        small=int((np.minimum(width, height) < model.side).sum()),
        side=model.side,
        model=model.name,
        formats=counts_of(chosen.column("format").to_pylist()),
        modes=counts_of(chosen.column("mode").to_pylist()),
        animated=int((frames > 1).sum()),
        blank=len(blank),
        blanks=tuple(names(row) for row in blank[:EXAMPLES]),
    )


def _duplicated(found: Duplicates, names: Callable[[int], Row]) -> Duplicated:
    def listed(group: Group) -> Copies:
        return Copies(kind=group.kind, rows=tuple(names(row) for row in group.rows[:20]))

    counts = Counter(group.kind for group in found.groups)
    return Duplicated(
        files=found.pictures,
        repeated=len(found.repeated),
        surplus=dict(found.surplus),
        group_counts={kind: counts[kind] for kind in ("bytes", "pixels", "near")},
        groups=tuple(listed(group) for group in found.groups[:EXAMPLES]),
        conflicts=tuple(listed(Group("pixels", rows)) for rows in found.conflicts[:EXAMPLES]),
        conflict_count=len(found.conflicts),
        loosely_checked=found.loosely_checked,
        mislabelled=tuple(listed(Group("near", pair)) for pair in found.mislabelled[:EXAMPLES]),
        mislabelled_count=len(found.mislabelled),
    )


def _leaks(
    found: Duplicates, sides: Sequence[str | None], table: Table, names: Callable[[int], Row], limit: float
) -> tuple[Leaks, ...]:
    parts = []
    identities, same_text = table.identities(), _same_text(table)
    for side in ("test", "val"):
        leaks = [leak for leak in found.leaks if leak.side == side]
        if not leaks:
            continue
        held_out = len({name for name, of in zip(identities, sides, strict=True) if of == side})
        # Drawings that differ in a detail are similar, too; equal texts make the leak certain.
        sure = [leak for leak in leaks if leak.kind != "near" or same_text(leak.row, leak.other)]
        counts = Counter(leak.kind for leak in sure)
        examples = [
            Leaking(
                kind=leak.kind,
                difference=round(leak.difference, 2),
                same_text=same_text(leak.row, leak.other),
                held_out=names(leak.row),
                other=names(leak.other),
            )
            for leak in leaks[:EXAMPLES]
        ]
        parts.append(
            Leaks(
                side=side,
                held_out=held_out,
                counts={kind: counts[kind] for kind in ("bytes", "pixels", "near") if counts[kind]},
                share=min(1.0, len(sure) / max(1, held_out)),
                limit=limit,
                alike=len(leaks) - len(sure),
                examples=tuple(examples),
            )
        )
    return tuple(parts)


def _same_text(table: Table) -> Callable[[int, int], bool]:
    columns = [table.column(n) for n in ("class_key", "concept") if table.has(n)]
    columns.append(text_column(table))
    return lambda one, other: any(c[one] is not None and c[one] == c[other] for c in columns)


def _set_aside(quarantine: Quarantine, limit: float) -> SetAside:
    examples: dict[str, list[str]] = {}
    for entry in quarantine.entries:
        held = examples.setdefault(entry.reason, [])
        if len(held) < 3:
            held.append(entry.name + (f": {entry.detail}" if entry.detail else ""))
    return SetAside(
        total=quarantine.total,
        count=len(quarantine.entries),
        share=quarantine.mendable,
        limit=limit,
        reasons=quarantine.counts(),
        archives=quarantine.archives,
        archives_stop=quarantine.archives_stop(limit),
        examples={reason: tuple(held) for reason, held in examples.items()},
    )
