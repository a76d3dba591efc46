"""Candidates for a proposed scenario, and the choice of the first one that can be built."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everclip.config import validated
from everclip.data.table import Table
from everclip.errors import ConfigError, DataError
from everclip.prepare.check.periods import misordered
from everclip.prepare.init_config.sides import rule_by_marks, splits
from everclip.scenarios.base import ListScenario
from everclip.scenarios.load import build_scenario
from everclip.scenarios.periods import period_of
from everclip.scenarios.reading import Reader, has_values
from everclip.scenarios.spec import ScenarioSpec
from everclip.scenarios.splits import NO_ROW

UNITS = ("day", "week", "month", "quarter", "year", "value")
"""From fine to coarse; the finest unit with at most `MOST_TASKS` tasks is proposed."""

MOST_TASKS = 12


@dataclass(frozen=True)
class Wish:
    """The wishes of the user.

    Attributes:
        kind: of the stream; default: chosen by the data.
        classes_per_task: number of classes per task; default: all classes in one task.
        test: a `data` block of separate test data.
        remove_shared: remove images on several sides from training; else such data are refused.
    """

    kind: str | None = None
    classes_per_task: int | None = None
    test: Mapping[str, Any] | None = None
    remove_shared: bool = False


def distinct_values(table: Table, column: str) -> list[str]:
    if not table.has(column):
        return []
    return [str(v) for v in dict.fromkeys(table.column(column)) if v is not None and v != ""]


def time_units(table: Table) -> list[tuple[str, int]]:
    """Return the units with 2 to `MOST_TASKS` periods, finest first, with the number of periods."""
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


def candidates(
    kind: str,
    common: Mapping[str, Any],
    blocks: Sequence[dict[str, Any]],
    tables: Sequence[Table],
    wish: Wish,
) -> Iterator[dict[str, Any]]:
    """Yield documents, in order of preference."""
    metric = {"everything": True, "protocols": [{"name": "own"}, {"name": "all", "space": "all"}]}
    headline = {"headline": {"protocol": "all", "metric": "auto"}}
    if kind == "languages":
        metric = {"protocols": [{"name": "learned", "space": "learned"}]}
        headline = {"headline": {"protocol": "learned", "metric": "mean_r1"}}
    if kind == "online":
        metric = {"protocols": [{"name": "seen", "space": "seen"}, {"name": "all", "space": "all"}]}
        headline = {"headline": {"protocol": "seen", "metric": "accuracy"}}
    if kind == "sources":
        settings = [_sources(blocks, tables)]
    else:
        settings = [{"data": blocks[0], **setting} for setting in _settings(kind, tables[0], wish)]
    for setting in settings:
        for split in splits(tables, "test" in common, wish.remove_shared):
            own = _by_own_marks(setting, tables, split) if kind == "sources" else setting
            yield {**common, "kind": kind, **own, "split": split, **metric, **headline}


def _settings(kind: str, table: Table, wish: Wish) -> Iterator[dict[str, Any]]:
    if kind == "time":
        if not has_values(table, "time"):
            raise ConfigError("--kind time: the data have no column `time`; name it with columns.time=NAME.")
        if date := misordered(v for v in table.column("time") if v is not None):
            raise ConfigError(
                f"{table.name}: column `time` holds {date!r}, which sorts by its first number and not by date. Write "
                "dates as 2025-01-31, or make no stream by time: use --kind single, or columns.time= for no time."
            )
        for unit, _ in time_units(table) or [("value", 0)]:
            yield {"every": unit}
    elif kind == "languages":
        names = distinct_values(table, "language")
        if not names:
            raise ConfigError(
                "--kind languages: the data have no column `language`; name it with columns.language=NAME."
            )
        english = [name for name in names if re.split(r"[-_]", name.lower())[0] == "en"]
        yield {"source_language": (english or list(names))[0]}
    elif kind == "domains":
        column = (
            "language"
            if table.has("language")
            else next((c for c in ("domain", "split") if table.has(c)), None)
        )
        if column is None:
            raise ConfigError(
                "--kind domains: the data have no column `language`; name it with columns.language=NAME, or give the "
                "domains as several data sets."
            )
        yield {"column": column}
    elif kind == "classes":
        count = len(distinct_values(table, "class_key"))
        if count < 2:
            raise ConfigError(f"--kind classes: the data have {count} classes; a stream needs at least 2.")
        yield _class_groups(count, wish.classes_per_task)
    elif kind == "online":
        count = len(distinct_values(table, "class_key"))
        if count < 2:
            raise ConfigError(f"--kind online: the data have {count} classes; a stream needs at least 2.")
        # About twenty rows of the result.
        yield {"online": {"parts": min(5, count), "every": max(1, len(table) // 20)}, "order_seed": 0}
    else:
        yield {}


def _sources(blocks: Sequence[dict[str, Any]], tables: Sequence[Table]) -> dict[str, Any]:
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


def _class_groups(count: int, wanted: int | None) -> dict[str, Any]:
    """Return the number of classes per task: never one alone, so a rest of one goes into the first task."""
    per_task = wanted or max(2, math.ceil(count / 5))
    found: dict[str, Any] = {"per_task": per_task, "order": "seed"}
    if count % per_task == 1 and count > per_task:
        found["first_task"] = per_task + 1
    return found


def _by_own_marks(
    setting: Mapping[str, Any], tables: Sequence[Table], split: Mapping[str, Any]
) -> dict[str, Any]:
    """Keep the marked sides of sources; the split of the stream applies to the others."""
    shared = {"shared": split["shared"]} if "shared" in split else {}
    rules = [rule_by_marks(table, split["validation"], shared) for table in tables]
    sources = [
        source if rule is None or rule == split else {**source, "split": rule}
        for source, rule in zip(setting["sources"], rules, strict=True)
    ]
    return {**setting, "sources": sources}


def first_that_builds(
    candidates: Iterator[dict[str, Any]], reader: Reader
) -> tuple[dict[str, Any], ListScenario]:
    """Return the first document with training, validation and test rows for all tasks and classes.

    If there is none, return the one that lacks least.
    """
    best: tuple[dict[str, Any], ListScenario] | None = None
    least = math.inf
    problem: DataError | None = None
    for document in candidates:
        try:
            scenario = build_scenario(validated(ScenarioSpec, document, ""), reader.fresh())
            if document["kind"] != "online":  # parts of one class are learned beside others
                _require_answers(scenario)
        except DataError as error:
            problem = problem or error
            continue
        if (count := _lacks(scenario)) < least:
            best, least = (document, scenario), count
        if not count:
            break
    if best is None:
        raise DataError(str(problem)) from problem
    return best


def _lacks(scenario: ListScenario) -> int:
    """Return the number of tasks without validation rows plus that of sides that lack classes."""
    unwatched = sum(task.val is None or not len(task.val) for task in scenario.tasks)
    return unwatched + sum(NO_ROW in note for note in scenario.notes)


def _require_answers(scenario: ListScenario) -> None:
    """Refuse tasks with only one class or text: they teach nothing.

    Raises:
        DataError: names the task and its class or text.
    """
    for task in scenario.tasks:
        if task.classes is not None:
            texts = {entry.name for entry in task.classes}
        else:
            texts = {str(text) for text in task.train.column("caption")}
        if len(texts) < 2:
            what = "class" if task.classes is not None else "caption"
            raise DataError(
                f"task {task.name!r} has one {what} ({next(iter(texts), '')[:60]!r}), so there is nothing to tell "
                f"apart in its {len(task.train):,} training rows; give more classes, or captions that differ (some "
                "rows are held out for testing and validation)"
            )
