"""Proposes a stream for a user's data: which kind, which split, how long to train. What is proposed was built once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from everclip.config import validated
from everclip.data.periods import misordered
from everclip.data.quarantine import Quarantine
from everclip.data.spec import DataSpec
from everclip.data.splits import side_of
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError, did_you_mean
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import build_scenario
from everclip.scenarios.paths import Paths
from everclip.scenarios.periods import period_of
from everclip.scenarios.reading import Reader, has_values
from everclip.scenarios.spec import ScenarioSpec

KINDS = tuple(get_args(ScenarioSpec.model_fields["kind"].annotation))
UNITS = ("day", "week", "month", "quarter", "year", "value")
"""From fine to coarse; the finest that gives no more than `MOST_TASKS` tasks is proposed."""

MOST_TASKS = 12
BY_MARKS = {"column": "split", "validation": 0.1}
"""How data are split that mark their test rows."""

SHARES = (0.2, 0.3, 0.5)
"""Shares of test rows, tried until every task has rows to learn from, to choose on and to be measured on."""


@dataclass(frozen=True)
class Proposal:
    """A stream that fits the data.

    Attributes:
        document: the scenario, as YAML holds it.
        scenario: what it builds.
        reason: why it is of this kind.
        training: batch size, epochs and learning rate.
        training_reason: why so.
        quarantine: what was set aside of the data.
        guesses: what was guessed about them.
    """

    document: dict[str, Any]
    scenario: ListScenario
    reason: str
    training: dict[str, Any]
    training_reason: str
    quarantine: tuple[Quarantine, ...]
    guesses: tuple[str, ...]


def propose(blocks: Sequence[Mapping[str, Any]], kind: str | None = None) -> Proposal:
    """Propose a stream for data.

    Args:
        blocks: `data` blocks; several become a stream of sources.
        kind: of the stream; default: by what the data hold.

    Raises:
        ConfigError: for a kind that is not known, or does not go with the data.
        DataError: for data that cannot be read, or hold too little to learn from and to be measured on.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"--kind: {kind!r} is not known.{did_you_mean(kind, KINDS)}")
    specs = [validated(DataSpec, block, "data") for block in blocks]
    reader = Reader(Paths())
    tables = [reader.read(spec) for spec in specs]
    explicit = [_explicit(block, reader.columns(spec)) for block, spec in zip(blocks, specs, strict=True)]
    common = _common(tables)
    chosen, reason = (kind, "as asked for") if kind else _kind(tables)
    if (chosen == "sources") != (len(tables) > 1) and kind != "sources":
        raise ConfigError(f"--kind {chosen}: {len(tables)} data sets are a stream of `sources`; name one.")
    try:
        document, scenario = _first_that_builds(_candidates(chosen, common, explicit, tables), reader)
    except DataError as error:
        if kind is not None or chosen in ("single", "sources"):
            raise
        reason = f"no stream of kind {chosen}, since {error}"
        document, scenario = _first_that_builds(_candidates("single", common, explicit, tables), reader)
    training, why = _training(scenario)
    return Proposal(
        document, scenario, reason, training, why, tuple(reader.quarantine), tuple(reader.guesses)
    )


def _explicit(block: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Write out which columns were guessed, so that a column that appears later changes nothing."""
    named = {wanted: found for wanted, found in columns.items() if wanted != found}
    return {**block, "columns": named} if named else dict(block)


def _common(tables: Sequence[Table]) -> dict[str, Any]:
    names = [re.sub(r"[^a-z0-9]+", "-", Path(t.name).stem.lower()).strip("-") or "data" for t in tables]
    rows = sum(map(len, tables))
    return {
        "name": "-".join(dict.fromkeys(names))[:60],
        "version": 1,
        "summary": f"{rows:,} samples of {', '.join(t.name for t in tables)}",
    }


def _kind(tables: Sequence[Table]) -> tuple[str, str]:
    if len(tables) > 1:
        return "sources", f"{len(tables)} data sets: one task each"
    table = tables[0]
    if has_values(table, "time") and (units := _units(table)):
        return "time", f"the column `time` spans {units[0][1]} {units[0][0]}s"
    languages = _distinct(table, "language")
    if len(languages) > 1:
        return "domains", f"{len(languages)} languages: one task each"
    classes = _distinct(table, "class_key")
    if len(classes) > 1 and not has_values(table, "caption"):
        return "classes", f"{len(classes)} classes and no captions: a few classes at a time"
    return "single", "no times, no languages, no classes alone: everything is one task"


def _distinct(table: Table, column: str) -> list[str]:
    if not table.has(column):
        return []
    return [str(v) for v in dict.fromkeys(table.column(column)) if v is not None and v != ""]


def _units(table: Table) -> list[tuple[str, int]]:
    """Return the units that give 2 to `MOST_TASKS` periods, finest first, with the number of periods."""
    values = [value for value in dict.fromkeys(table.column("time")) if value is not None and value == value]
    found = []
    for unit in UNITS:
        try:
            count = len({period_of(value, unit) for value in values})
        except ValueError:
            continue
        if 2 <= count <= MOST_TASKS:
            found.append((unit, count))
    return found


# -- candidates -----------------------------------------------------------------------------------------------


def _candidates(
    kind: str, common: Mapping[str, Any], blocks: Sequence[dict[str, Any]], tables: Sequence[Table]
) -> Iterator[dict[str, Any]]:
    """Yield documents, the preferred first."""
    settings = [_several(blocks, tables)] if kind == "sources" else list(_settings(kind, tables[0]))
    if kind != "sources":
        settings = [{"data": blocks[0], **setting} for setting in settings]
    elif any(map(_marked, tables)) and not all(map(_marked, tables)):
        settings.insert(0, _by_own_marks(settings[0], tables))
    metric = {"protocols": [{"name": "own"}, {"name": "all", "space": "all"}]}
    headline = {"headline": {"protocol": "all", "metric": "auto"}}
    for setting in settings:
        for split in _splits(tables):
            yield {**common, "kind": kind, **setting, "split": split, **metric, **headline}


def _settings(kind: str, table: Table) -> Iterator[dict[str, Any]]:
    if kind == "time":
        if not has_values(table, "time"):
            raise ConfigError("--kind time: the data have no column `time`; name it with columns.time=NAME.")
        if date := misordered(v for v in table.column("time") if v is not None):
            raise ConfigError(
                f"{table.name}: column `time` holds {date!r}, which sorts by its first number and not by date. Write "
                "dates as 2025-01-31, or go without a stream by time: --kind single, or columns.time= for no time."
            )
        for unit, _ in _units(table) or [("value", 0)]:
            yield {"every": unit}
    elif kind == "domains":
        column = "language" if table.has("language") else next((c for c in ("split",) if table.has(c)), None)
        if column is None:
            raise ConfigError(
                "--kind domains: the data have no column `language`; name it with columns.language=NAME, or give the "
                "domains as several data sets."
            )
        yield {"column": column}
    elif kind == "classes":
        count = len(_distinct(table, "class_key"))
        if count < 2:
            raise ConfigError(
                f"--kind classes: the data have {count} classes; there is nothing to add later."
            )
        yield {"per_task": math.ceil(count / min(5, count)), "order": "seed"}
    else:
        yield {}


def _several(blocks: Sequence[dict[str, Any]], tables: Sequence[Table]) -> dict[str, Any]:
    names: list[str] = []
    for table in tables:
        stem = Path(table.name).stem or table.name
        names.append(stem if stem not in names else f"{stem}-{len(names) + 1}")
    kinds = ["retrieval" if has_values(t, "caption") else "classification" for t in tables]
    return {
        "sources": [
            {"name": name, "data": block, "kind": kind}
            for name, block, kind in zip(names, blocks, kinds, strict=True)
        ]
    }


def _by_own_marks(setting: Mapping[str, Any], tables: Sequence[Table]) -> dict[str, Any]:
    """Let the sources that mark their test rows keep them; the stream's share is for the others."""
    sources = [
        {**source, "split": dict(BY_MARKS)} if _marked(table) else source
        for source, table in zip(setting["sources"], tables, strict=True)
    ]
    return {**setting, "sources": sources}


def _marked(table: Table) -> bool:
    return table.has("split") and any(side_of(mark) == "test" for mark in table.column("split"))


def _splits(tables: Sequence[Table]) -> Iterator[dict[str, Any]]:
    if all(map(_marked, tables)):
        yield dict(BY_MARKS)
    for share in SHARES:
        yield {"test": share, "validation": 0.1 if share < 0.5 else 0.3}


def _first_that_builds(
    candidates: Iterator[dict[str, Any]], reader: Reader
) -> tuple[dict[str, Any], ListScenario]:
    """Return the first document whose tasks can all be learned, measured and chosen on, else the first that builds."""
    second: tuple[dict[str, Any], ListScenario] | None = None
    problem: DataError | None = None
    for document in candidates:
        try:
            scenario = build_scenario(validated(ScenarioSpec, document, ""), reader.again())
        except DataError as error:
            problem = problem or error
            continue
        if all(task.val is not None and len(task.val) for task in scenario.tasks):
            return document, scenario
        second = second or (document, scenario)
    if second is None:
        raise DataError(str(problem)) from problem
    return second


# -- training -------------------------------------------------------------------------------------------------

STEPS = 300
"""Steps per task that small data are given; large data get one epoch."""


def _training(scenario: ListScenario) -> tuple[dict[str, Any], str]:
    """Return batch size and epochs for the size of the tasks, and why."""
    sizes = sorted(len(task.train) for task in scenario.tasks)
    typical, smallest = sizes[len(sizes) // 2], sizes[0]
    # Some eight batches in the smallest task: a contrastive loss wants many others, a short task wants many steps.
    batch = min(256, smallest, 2 ** int(math.log2(max(8, smallest / 8))))
    steps = max(1, typical // batch)
    epochs = max(1, min(20, round(STEPS / steps)))
    reason = (
        f"A task has {typical:,} training rows in the middle ({smallest:,} to {sizes[-1]:,}): some "
        f"{math.ceil(typical * epochs / batch):,} steps of {batch} in all"
    )
    return {"epochs": epochs, "batch_size": batch, "lr": 1e-5}, reason
