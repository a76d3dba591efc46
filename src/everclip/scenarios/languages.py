"""Tasks by language: one per value of a column; each caption knows which source caption it is a translation of."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from everclip.data.sampling.order import generator
from everclip.data.table import Table
from everclip.errors import DataError
from everclip.scenarios.conditions import require_column
from everclip.scenarios.groups import Group
from everclip.scenarios.ordering import ordered
from everclip.scenarios.reading import Reader
from everclip.scenarios.spec import ScenarioSpec
from everclip.scenarios.splits import Parts

Sources = dict[str, list[str]]
"""Identity of an image -> its captions in the source language, in order."""


def groups(spec: ScenarioSpec, parts: Parts, reader: Reader) -> list[Group]:
    """Return one group per language, in `spec.order`.

    A language without training rows or test rows is left out with a note; one that `order` lists is an error then.
    Training and validation rows get the column `source_caption`.

    Raises:
        DataError: if the column is missing, no language can be learned, or a listed one cannot.
    """
    column = spec.column or "language"
    require_column(parts.train, column, "kind `languages`")
    trained, tested = _counts(parts.train, column), _counts(parts.test, column)
    usable = [name for name in trained if name in tested or spec.one_test]
    _report_others(spec, trained, tested, usable, column, parts, reader)
    if not usable:
        raise DataError(
            f"{parts.train.name}: no value of {column!r} has training rows and test rows; check `split`, or name the "
            "column of languages with scenario.column."
        )
    pick, sources = parts.by(column), _sources(parts, column, spec.source_language, reader)
    found = []
    for name in _order(usable, spec, column):
        part = pick([name])
        val = None if part.val is None else _with_sources(part.val, sources)
        train = _with_sources(part.train, sources)
        found.append(Group(name, Parts(train, val, part.test), "retrieval", language=name, key="column"))
    return found


def _counts(table: Table, column: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in table.column(column):
        if value is not None and str(value):
            found[str(value)] = found.get(str(value), 0) + 1
    return found


def _report_others(
    spec: ScenarioSpec,
    trained: dict[str, int],
    tested: dict[str, int],
    usable: Sequence[str],
    column: str,
    parts: Parts,
    reader: Reader,
) -> None:
    """Note rows and languages that make no task; a listed language must be there.

    Raises:
        DataError: for a listed language without training or test rows.
    """
    order = spec.orders.get(spec.order, ()) if isinstance(spec.order, str) else spec.order
    others = [name for name in {**trained, **tested} if name not in usable]
    for name in others:
        counts = f"{trained.get(name, 0):,} training and {tested.get(name, 0):,} test rows"
        if name in order:
            raise DataError(
                f"{parts.train.name}: the language {name!r} (order) has {counts}, so it cannot be learned and "
                "measured; give it more rows, or leave it out of `order`."
            )
        reader.notes.append(f"{parts.train.name}: the language {name!r} has {counts}: left out")
    without = len(parts.train) - sum(trained.values())
    if without:
        reader.notes.append(
            f"{parts.train.name}: {without:,} training rows without {column!r} belong to no task"
        )


def _order(names: Sequence[str], spec: ScenarioSpec, column: str) -> list[str]:
    """Return the languages in order; in a drawn order, the source language comes first."""
    if spec.order == "seed":
        by_name = sorted(names)
        draw = generator("order", spec.name, spec.order_seed).permutation(len(by_name))
        drawn = [by_name[int(i)] for i in draw]
        return sorted(drawn, key=lambda name: name != spec.source_language)
    return ordered(names, spec, f"values of {column!r}")


def _sources(parts: Parts, column: str, language: str, reader: Reader) -> Sources:
    found: Sources = {}
    for table in (parts.train, parts.val):
        if table is None or not len(table):
            continue
        for identity, value, caption in zip(
            table.identities(), table.column(column), table.column("caption"), strict=True
        ):
            if value is not None and str(value) == language and caption:
                found.setdefault(identity, []).append(str(caption))
    if not found:
        reader.notes.append(
            f"{parts.train.name}: no training row is in {language!r} (scenario.source_language), so no caption has a "
            "source caption; methods that need them learn from images alone"
        )
    return found


def _with_sources(table: Table, sources: Sources) -> Table:
    """Add the source captions: the k-th caption of an image gets the k-th of its source captions, in turn."""
    seen: dict[str, int] = {}
    given: list[str | None] = []
    for identity in table.identities():
        number = seen[identity] = seen.get(identity, -1) + 1
        captions = sources.get(identity)
        given.append(captions[number % len(captions)] if captions else None)
    return table.with_column("source_caption", given, pa.string())
